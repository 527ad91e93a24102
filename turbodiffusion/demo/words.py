"""The demo world's words, English and Chinese: what captions are made of and what a prompt may use."""

# English (third person, participle) and Chinese of a motion, by (kind or "", motion); "" is what every other kind does.
VERBS: dict[tuple[str, str], tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    ("", "walk"): ((("walks", "walking"), ("strolls", "strolling")), ("走", "行走", "走路")),
    ("", "run"): ((("runs", "running"), ("dashes", "dashing")), ("跑", "奔跑", "飞奔")),
    ("vehicle", "walk"): ((("drives", "driving"), ("rolls", "rolling")), ("行驶", "开")),
    ("vehicle", "run"): ((("races", "racing"), ("speeds", "speeding")), ("飞驰", "疾驰")),
    ("boat", "walk"): ((("sails", "sailing"), ("drifts", "drifting")), ("航行", "漂")),
    ("boat", "run"): ((("speeds", "speeding"), ("races", "racing")), ("飞驰", "快速航行")),
    ("paddler", "walk"): ((("swims", "swimming"),), ("游", "游水")),
    ("paddler", "run"): ((("swims fast", "swimming fast"),), ("快速地游", "飞快地游")),
    ("paddler", "circle"): ((("swims in circles", "swimming in circles"),), ("绕圈游", "绕圈")),
    ("paddler", "still"): ((("floats", "floating"), ("stays still", "staying still")), ("静静地漂着", "不动")),
    ("ball", "walk"): ((("rolls", "rolling"),), ("滚动",)),
    ("ball", "run"): ((("rolls fast", "rolling fast"),), ("飞快地滚动",)),
    ("", "jump"): (
        (("jumps up and down", "jumping up and down"), ("hops", "hopping"), ("jumps", "jumping")),
        ("跳跃", "蹦蹦跳跳", "跳"),
    ),
    ("", "fly"): ((("flies", "flying"),), ("飞", "飞行")),
    ("swimmer", "fly"): ((("swims", "swimming"),), ("游", "游动")),
    ("floater", "fly"): ((("floats", "floating"), ("drifts", "drifting")), ("飘", "飘动")),
    ("", "fall"): (
        (("falls down", "falling down"), ("falls from above", "falling from above")),
        ("落下", "从上面掉下来", "坠落"),
    ),
    ("", "spin"): (
        (("spins", "spinning"), ("spins around", "spinning around"), ("rotates", "rotating")),
        ("旋转", "转动", "打转"),
    ),
    ("", "circle"): (
        (("moves in circles", "moving in circles"), ("goes around in circles", "going around in circles")),
        ("绕圈", "转圈"),
    ),
    ("walker", "circle"): (
        (("runs in circles", "running in circles"), ("moves in circles", "moving in circles")),
        ("绕圈跑", "转圈", "绕圈"),
    ),
    ("flyer", "circle"): (
        (("flies in circles", "flying in circles"), ("circles", "circling")),
        ("盘旋", "绕圈飞", "绕圈"),
    ),
    ("swimmer", "circle"): ((("swims in circles", "swimming in circles"), ("circles", "circling")), ("绕圈游", "绕圈")),
    ("", "approach"): (
        (
            ("comes closer", "coming closer"),
            ("approaches", "approaching"),
            ("comes towards the camera", "coming towards the camera"),
        ),
        ("走近", "靠近", "越来越近"),
    ),
    ("", "recede"): (
        (("moves away", "moving away"), ("goes away into the distance", "going away into the distance")),
        ("远去", "离开", "越来越远"),
    ),
    ("", "still"): (
        (("stands still", "standing still"), ("stays still", "staying still")),
        ("静静地待着", "站着不动", "不动"),
    ),
    ("flyer", "still"): ((("hovers", "hovering"), ("stays still", "staying still")), ("悬停", "停着不动", "不动")),
    ("craft", "still"): ((("hovers", "hovering"), ("stays still", "staying still")), ("悬停", "停着不动", "不动")),
    ("craft", "circle"): (
        (("flies in circles", "flying in circles"), ("circles", "circling")),
        ("盘旋", "绕圈飞", "绕圈"),
    ),
    ("floater", "still"): ((("hovers", "hovering"), ("stays still", "staying still")), ("悬浮", "静静地待着", "不动")),
    ("swimmer", "still"): ((("stays still", "staying still"), ("rests", "resting")), ("静静地待着", "不动")),
    ("vehicle", "still"): ((("stands still", "standing still"), ("is parked", "parked")), ("停着", "停着不动")),
    ("boat", "still"): ((("stays still", "staying still"), ("rests", "resting")), ("停着", "停着不动")),
}
COLOURS: dict[str, str] = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "white": "白色", "black": "黑色", "brown": "棕色",
}  # fmt: skip
SIZES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "small": (("small", "little", "tiny"), ("小", "小小的")),
    "big": (("big", "large", "huge"), ("大", "巨大的")),
}
SPEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "slow": (("slowly",), ("慢慢地", "缓慢地")),
    "fast": (("fast", "quickly"), ("飞快地", "快速地")),
}
DIRECTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "left": (("to the left", "left", "from right to left"), "向左"),
    "right": (("to the right", "right", "from left to right"), "向右"),
    "up": (("up", "upwards"), "向上"),
    "down": (("down", "downwards"), "向下"),
}
# A place: article, noun, preposition of rest, preposition of travel; Chinese noun, Chinese particle after it.
PLACES: dict[str, tuple[str, str, str, str, str, str]] = {
    "garden": ("a", "garden", "in", "through", "花园", "里"),
    "meadow": ("a", "meadow", "in", "across", "草地", "上"),
    "forest": ("a", "forest", "in", "through", "森林", "里"),
    "beach": ("a", "beach", "on", "along", "沙滩", "上"),
    "sea": ("the", "sea", "on", "across", "大海", "上"),
    "desert": ("a", "desert", "in", "through", "沙漠", "里"),
    "snow": ("a", "snow field", "in", "across", "雪地", "里"),
    "city": ("a", "city street", "on", "along", "城市街道", "上"),
    "sky": ("the", "sky", "in", "through", "天空", "中"),
    "space": ("", "outer space", "in", "through", "太空", "中"),
    "underwater": ("the", "sea", "under", "under", "海底", ""),
}
# A light: adjective before the place ("" if none), words after it; the same in Chinese (before the place, after the
# sentence).
LIGHTS: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "sunny": ("sunny", ("in the sunshine", "on a sunny day"), "阳光明媚的", ("阳光明媚", "晴天")),
    "sunset": ("", ("at sunset", "at dusk"), "夕阳下的", ("日落时分", "黄昏")),
    "night": ("", ("at night", "under the moon"), "夜晚的", ("夜晚", "月光下")),
    "fog": ("foggy", ("in the fog", "in thick fog"), "大雾中的", ("大雾弥漫", "雾天")),
    "rain": ("rainy", ("in the rain", "on a rainy day"), "雨中的", ("下着雨", "雨天")),
    "snow": ("", ("while it snows", "in falling snow"), "飘雪的", ("下着雪", "雪花飘落")),
}
CAMERAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (("still camera", "the camera does not move"), ("镜头静止", "固定镜头")),
    "pan left": (("camera pans left", "the camera pans to the left"), ("镜头向左平移", "镜头左移")),
    "pan right": (("camera pans right", "the camera pans to the right"), ("镜头向右平移", "镜头右移")),
    "tilt up": (("camera tilts up", "the camera tilts up"), ("镜头上摇", "镜头向上移动")),
    "tilt down": (("camera tilts down", "the camera tilts down"), ("镜头下摇", "镜头向下移动")),
    "zoom in": (("camera zooms in", "the camera zooms in"), ("镜头推近", "镜头拉近")),
    "zoom out": (("camera zooms out", "the camera zooms out"), ("镜头拉远",)),
}
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (("3D cartoon", "3D cartoon style"), ("3D卡通风格", "三维卡通")),
    "black and white": (("black and white", "black and white film"), ("黑白画面", "黑白电影")),
}

# Words that prompts use for something that is here under another name: name -> the others' words.
_OTHER_NAMES: dict[str, str] = {
    "cat": "kitten kitty 小猫",
    "dog": "puppy doggy 小狗",
    "horse": "pony foal 小马",
    "cow": "calf bull 牛",
    "pig": "piglet 小猪",
    "rabbit": "bunny hare 兔",
    "turtle": "tortoise 龟",
    "rooster": "chicken hen 鸡",
    "dinosaur": "t-rex",
    "octopus": "squid",
    "butterfly": "moth",
    "bee": "wasp",
    "bird": "sparrow parrot eagle 鸟",
    "bus": "truck van 卡车",
    "car": "taxi automobile",
    "sailboat": "boat ship yacht 船",
    "rocket": "spaceship spacecraft 飞船",
    "helicopter": "plane airplane 飞机",
    "flying saucer": "ufo",
    "ghost": "spirit",
    "tiger": "lion leopard 虎 狮子",
    "garden": "park yard 公园",
    "meadow": "field grassland grass hills 草原",
    "forest": "wood woods jungle 树林",
    "beach": "shore coast 海滩 海边",
    "sea": "ocean lake river 海洋 海 湖",
    "desert": "dunes",
    "city": "town street road 城市 街道 街",
    "snow": "ice mountains 雪",
    "space": "moon stars universe galaxy 宇宙 星空",
    "underwater": "reef 水下 深海",
    "red": "crimson scarlet",
    "yellow": "golden gold 金色",
    "blue": "turquoise cyan",
    "purple": "violet",
    "pink": "magenta",
    "white": "gray grey silver 灰色 银色",
    "elephant": "象",
}
ALIASES: dict[str, str] = {word: name for name, line in _OTHER_NAMES.items() for word in line.split()}
