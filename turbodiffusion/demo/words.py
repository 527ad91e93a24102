"""The demo world's words, English and Chinese: what captions are made of and what a prompt may use."""

# English (third person, participle) and Chinese of a motion, by (kind or "", motion); "" is what every other kind does.
VERBS: dict[tuple[str, str], tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    ("", "walk"): ((("walks", "walking"), ("strolls", "strolling")), ("走", "行走", "走路")),
    ("", "run"): ((("runs", "running"), ("dashes", "dashing")), ("跑", "奔跑", "飞奔")),
    ("head", "walk"): ((("hops along", "hopping along"), ("moves", "moving")), ("一跳一跳地走", "移动")),
    ("vehicle", "walk"): ((("drives", "driving"), ("rolls", "rolling")), ("行驶", "开")),
    ("vehicle", "run"): ((("races", "racing"), ("speeds", "speeding")), ("飞驰", "疾驰")),
    ("cycle", "walk"): ((("rides", "riding"), ("cycles", "cycling")), ("骑行", "骑车")),
    ("cycle", "run"): ((("races", "racing"), ("rides fast", "riding fast")), ("飞快地骑行", "飞驰")),
    ("skier", "walk"): ((("skis", "skiing"), ("glides", "gliding")), ("滑行", "滑雪")),
    ("skier", "run"): ((("races", "racing"), ("skis fast", "skiing fast")), ("飞快地滑行", "飞驰")),
    ("boat", "walk"): ((("sails", "sailing"), ("drifts", "drifting")), ("航行", "漂")),
    ("boat", "run"): ((("speeds", "speeding"), ("races", "racing")), ("飞驰", "快速航行")),
    ("paddler", "walk"): ((("swims", "swimming"),), ("游", "游水")),
    ("paddler", "run"): ((("swims fast", "swimming fast"),), ("快速地游", "飞快地游")),
    ("ball", "walk"): ((("rolls", "rolling"),), ("滚动",)),
    ("ball", "run"): ((("rolls fast", "rolling fast"),), ("飞快地滚动",)),
    ("", "jump"): (
        (("jumps up and down", "jumping up and down"), ("hops", "hopping"), ("jumps", "jumping")),
        ("跳跃", "蹦蹦跳跳", "跳"),
    ),
    ("ball", "jump"): ((("bounces", "bouncing"), ("bounces up and down", "bouncing up and down")), ("弹跳", "跳")),
    ("", "fly"): ((("flies", "flying"),), ("飞", "飞行")),
    ("swimmer", "fly"): ((("swims", "swimming"),), ("游", "游动")),
    ("floater", "fly"): ((("floats", "floating"), ("drifts", "drifting")), ("飘", "飘动")),
    ("", "fall"): (
        (("falls down", "falling down"), ("falls from above", "falling from above"), ("falls", "falling")),
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
    ("paddler", "circle"): ((("swims in circles", "swimming in circles"),), ("绕圈游", "绕圈")),
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
    ("floater", "still"): ((("hovers", "hovering"), ("stays still", "staying still")), ("悬浮", "静静地待着", "不动")),
    ("swimmer", "still"): ((("stays still", "staying still"), ("rests", "resting")), ("静静地待着", "不动")),
    ("vehicle", "still"): ((("stands still", "standing still"), ("is parked", "parked")), ("停着", "停着不动")),
    ("boat", "still"): ((("stays still", "staying still"), ("rests", "resting")), ("停着", "停着不动")),
    ("paddler", "still"): ((("floats", "floating"), ("stays still", "staying still")), ("静静地漂着", "不动")),
    ("dancer", "still"): ((("dances", "dancing"),), ("跳舞", "起舞")),
}
# A kind that has no verb of its own for a motion borrows this kind's.
LIKE: dict[str, str] = {"head": "walker", "person": "walker", "dancer": "walker", "craft": "flyer", "paddler": "boat"}
COLOURS: dict[str, str] = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "white": "白色", "black": "黑色", "brown": "棕色",
    "gray": "灰色",
}  # fmt: skip
# In Chinese: before the noun (大猫), and before everything (巨大的红色的猫).
SIZES: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {
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
    "pixel": (("pixel art", "pixel art style"), ("像素风格", "像素画")),
    "sketch": (("pencil sketch", "pencil sketch style"), ("铅笔素描", "素描风格")),
    "black and white": (("black and white", "black and white film"), ("黑白画面", "黑白电影")),
}

# Words that prompts use for something that is here under another name: name -> the others' words.
_OTHER_NAMES: dict[str, str] = {
    "cat": "kitten kitty 小猫",
    "dog": "puppy doggy poodle hound 小狗",
    "horse": "pony foal donkey 小马 驴",
    "cow": "calf bull ox buffalo 牛",
    "pig": "piglet boar hog 小猪 野猪",
    "elephant": "mammoth 象",
    "rabbit": "bunny hare 兔",
    "tiger": "虎",
    "leopard": "cheetah panther jaguar 豹",
    "turtle": "tortoise 龟",
    "sheep": "lamb ram 羊",
    "deer": "reindeer moose elk",
    "monkey": "ape chimp chimpanzee 猿 猴",
    "mouse": "rat hamster 鼠 仓鼠",
    "squirrel": "chipmunk",
    "seal": "walrus otter 海狮",
    "snake": "worm cobra python 蛇",
    "lizard": "crocodile alligator gecko 鳄鱼",
    "grasshopper": "cricket locust 蝗虫 蟋蟀",
    "ladybug": "beetle ladybird 甲虫",
    "rooster": "chicken hen 鸡 母鸡",
    "flamingo": "crane stork heron 鹤",
    "duck": "goose duckling 鹅",
    "bird": "sparrow robin swallow 鸟 麻雀",
    "eagle": "hawk falcon 鹰",
    "dove": "pigeon seagull",
    "butterfly": "moth dragonfly 蜻蜓",
    "bee": "wasp mosquito fly 苍蝇 蚊子",
    "fish": "goldfish salmon 金鱼",
    "squid": "jellyfish 水母",
    "shrimp": "lobster 龙虾",
    "robot": "android 机器",
    "man": "boy person woman girl child people king queen prince princess 人 男孩 女孩 女人 孩子 国王 公主",
    "astronaut": "cosmonaut spaceman",
    "wizard": "witch magician 魔法师",
    "car": "automobile jeep van suv 轿车",
    "truck": "lorry 货车",
    "train": "tram subway locomotive 地铁 电车",
    "motorcycle": "motorbike scooter moped",
    "bicycle": "bike",
    "sailboat": "boat ship yacht ferry 船 轮船",
    "rocket": "spaceship spacecraft shuttle 飞船",
    "airplane": "plane jet aeroplane",
    "flying saucer": "ufo 不明飞行物",
    "ghost": "spirit 鬼",
    "apple": "fruit orange pear peach 水果 梨 桃",
    "cake": "pizza donut bread 面包",
    "Christmas tree": "tree 树",
    "soccer ball": "ball football 球",
    "garden": "park yard 公园 院子",
    "meadow": "field grassland grass hill hills 草原 田野 山坡",
    "forest": "wood woods jungle 树林 丛林 竹林",
    "beach": "shore coast 海滩 海边",
    "sea": "ocean lake river pond 海洋 海 湖 河",
    "desert": "dunes",
    "city": "town street road village 城市 街道 街 马路 村",
    "snow": "ice mountain mountains 雪 冰 山",
    "space": "moon stars universe galaxy mars 宇宙 星空 月球 火星",
    "underwater": "reef 水下 深海",
    "red": "crimson scarlet",
    "yellow": "golden gold 金色",
    "blue": "turquoise cyan",
    "purple": "violet",
    "pink": "magenta",
    "gray": "grey silver 银色",
}
ALIASES: dict[str, str] = {word: name for name, line in _OTHER_NAMES.items() for word in line.split()}
