"""The demo world's words, English and Chinese: what captions are made of and what a prompt may use."""

# English (third person, participle) and Chinese of a motion, by (kind or "", motion); "" is what every other kind does.
VERBS: dict[tuple[str, str], tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    ("", "walk"): ((("walks", "walking"), ("strolls", "strolling")), ("走", "行走", "走路")),
    ("person", "walk"): ((("walks", "walking"), ("strolls", "strolling")), ("走", "行走", "漫步")),
    ("child", "walk"): ((("walks", "walking"), ("strolls", "strolling")), ("走", "行走", "漫步")),
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
    ("child", "still"): (
        (
            ("smiles", "smiling"),
            ("looks up and smiles", "looking up and smiling"),
            ("stands still", "standing still"),
        ),
        ("微笑", "抬头微笑", "抬起头微笑", "站着不动"),
    ),
    ("plant", "still"): (
        (("sways in the wind", "swaying in the wind"), ("sways", "swaying")),
        ("随风摇摆", "随风摇曳", "轻轻摇摆"),
    ),
}
# What a subject does that runs, flies or swims after others (third person, participle), and in Chinese.
CHASES: tuple[tuple[tuple[str, str], ...], tuple[str, ...]] = (
    (("chases", "chasing"), ("runs after", "running after")),
    ("追逐", "追赶", "追"),
)
# Chinese verbs that may stand before their place: 走在街道上.
BEFORE_PLACE = ("走", "行走", "漫步", "奔跑", "行驶", "飞驰", "骑行", "飞行")
# A kind that has no verb of its own for a motion borrows this kind's.
LIKE: dict[str, str] = {
    "head": "walker",
    "person": "walker",
    "child": "walker",
    "dancer": "walker",
    "craft": "flyer",
    "paddler": "boat",
}
# Other names of a subject, which captions use as often as the first, English and Chinese.
SYNONYMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "woman": (
        ("fashionable woman", "stylish woman", "young woman", "beautiful woman", "lady"),
        ("女性", "时尚女性", "时尚的女性", "年轻女性", "时髦的女人", "女士", "女子"),
    ),
    "man": (("young man", "gentleman"), ("男性", "男子", "男士")),
    "girl": (("little girl", "young girl"), ("小女孩", "姑娘", "少女")),
    "tree": (("leafy tree",), ("大树",)),
    "sailboat": (("boat", "sailing boat"), ("小船", "船")),
    "airplane": (("plane",), ("客机",)),
    "flying saucer": (("UFO",), ("不明飞行物",)),
    "dancer": (("dancing woman",), ("跳舞的女人",)),
}
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
    "neon": ("a", "neon street", "on", "down", "霓虹街道", "上"),
    "hill": ("a", "windy hill", "on", "across", "有风的山坡", "上"),
    "cherry": ("a", "cherry blossom park", "in", "through", "樱花公园", "里"),
    "sky": ("the", "sky", "in", "through", "天空", "中"),
    "space": ("", "outer space", "in", "through", "太空", "中"),
    "underwater": ("the", "sea", "under", "under", "海底", ""),
}
# The same places in other words: (of rest, of travel) in English, what stands after 在 in Chinese.
OTHER_PLACES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "neon": (
        (
            ("on a Tokyo street", "down a Tokyo street"),
            ("on a street of neon signs at night", "through a street of neon signs at night"),
            ("in a city of neon signs at night", "through a city of neon signs at night"),
            (
                "on a Tokyo street filled with warm glowing neon and animated city signage",
                "down a Tokyo street filled with warm glowing neon and animated city signage",
            ),
        ),
        ("东京街头", "夜晚的东京街头", "霓虹灯下的街头", "霓虹闪烁的城市街道上", "夜晚的霓虹街头"),
    ),
    "hill": (
        (("on a hill in the wind", "across a hill in the wind"), ("on a hill", "across a hill")),
        ("山坡上", "风中的山坡上"),
    ),
    "cherry": (
        (
            ("under cherry trees", "under cherry trees"),
            ("under the cherry blossoms", "under the cherry blossoms"),
            ("among cherry trees in bloom", "among cherry trees in bloom"),
        ),
        ("樱花树下", "盛开的樱花树下", "樱花林里"),
    ),
}
# What else is seen in a scene, said of it before or after the rest.
DETAILS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "neon": (
        (
            "the street is filled with warm glowing neon",
            "glowing neon signs on both sides of the street",
            "warm neon lights on both sides",
        ),
        ("街道两旁是温暖发光的霓虹灯", "两旁是发光的霓虹灯", "霓虹灯闪烁", "街道两旁霓虹灯闪烁"),
    ),
    "hill": (
        (
            "leaves sway in the wind",
            "clouds move fast",
            "leaves sway in the wind, clouds move fast",
            "trees sway in the wind as clouds drift quickly across the sky",
        ),
        ("树叶随风摇摆", "云层快速移动", "树叶随风摇摆，云层快速移动", "树木随风摇摆，云朵飞快飘过"),
    ),
    "cherry": (("cherry trees in bloom",), ("樱花盛开",)),
}
# What a subject wears, after its name.
WEARS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "woman": (
        ("in a white top and a red skirt", "in a long red skirt", "in a red dress"),
        ("穿着白色上衣和红色长裙的", "穿红裙的", "穿着红色裙子的"),
    ),
    "girl": (("in a pink dress",), ("穿粉色裙子的", "穿着粉色裙子的")),
    "man": (("in a blue shirt",), ("穿蓝色上衣的",)),
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
    "petals": (
        "",
        ("as cherry petals fall in the wind", "in falling petals", "while petals fall"),
        "花瓣飘落的",
        ("樱花瓣随风飘落", "花瓣飘落", "樱花飘落", "花瓣随风飘落"),
    ),
    "leaves": (
        "",
        ("as leaves fall in the wind", "in falling leaves", "in autumn"),
        "落叶纷飞的",
        ("树叶随风飘落", "落叶纷飞", "秋天"),
    ),
}
CAMERAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (("still camera", "the camera does not move"), ("镜头静止", "固定镜头")),
    "pan left": (("camera pans left", "the camera pans to the left"), ("镜头向左平移", "镜头左移", "镜头缓缓向左移动")),
    "pan right": (
        ("camera pans right", "the camera pans to the right"),
        ("镜头向右平移", "镜头右移", "镜头缓缓向右移动"),
    ),
    "tilt up": (("camera tilts up", "the camera tilts up"), ("镜头上摇", "镜头向上移动")),
    "tilt down": (("camera tilts down", "the camera tilts down"), ("镜头下摇", "镜头向下移动")),
    "zoom in": (
        ("camera zooms in", "the camera zooms in", "the camera pushes in", "the camera slowly pushes in"),
        ("镜头推近", "镜头拉近", "镜头推进", "镜头缓缓推进", "镜头缓缓推近"),
    ),
    "zoom out": (
        ("camera zooms out", "the camera zooms out", "the camera pulls back", "the camera slowly pulls back"),
        ("镜头拉远", "镜头后退", "镜头缓缓拉远"),
    ),
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
    "man": "boy person people king prince 人 男孩 国王",
    "woman": "queen 女王",
    "girl": "child princess kid 孩子 公主",
    "sunflower": "flower rose 花 玫瑰",
    "tree": "leaf 树木 树叶 叶子",
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
    "soccer ball": "ball football 球",
    "garden": "park yard 公园 院子",
    "meadow": "field grassland grass hills 草原 田野 山坡",
    "forest": "wood woods jungle 树林 丛林 竹林",
    "beach": "shore coast 海滩 海边",
    "sea": "ocean lake river pond 海洋 海 湖 河",
    "desert": "dunes",
    "hill": "wind windy 山坡 风",
    "cherry": "sakura blossom 樱花",
    "neon": "tokyo shibuya nightlife 东京 霓虹灯 夜市",
    "city": "town street road village 城市 街道 街 马路 村",
    "snow": "ice mountain mountains 雪 冰 山",
    "space": "moon stars universe galaxy mars 宇宙 星空 月球 火星",
    "underwater": "reef 水下 深海",
    "red": "crimson scarlet",
    "yellow": "golden gold 金色",
    "blue": "turquoise cyan",
    "purple": "violet",
    "pink": "magenta",
    # subjects of the table that a smaller world may lack
    "parrot": "bird 小鸟",
    "teddy bear": "bear 熊",
    "dolphin": "whale 鲸鱼",
    "fox": "wolf 狼",
    "cyclist": "bicycle 自行车",
    "gray": "grey silver 银色",
}
# Words inside phrases that captions use, which a prompt may put together in another way.
WITHIN_ZH: tuple[str, ...] = (
    "霓虹", "霓虹灯", "发光", "温暖", "闪烁", "街头", "东京", "夜晚", "夜里", "街道", "两旁",
    "樱花", "樱花树", "樱花瓣", "花瓣", "公园", "盛开", "随风", "飘落", "风", "风中", "有风",
    "山坡", "树", "树木", "树叶", "云", "云朵", "云层", "移动", "摇摆", "飘过", "落叶",
    "抬头", "微笑", "缓缓", "推进", "镜头", "城市", "穿", "穿着", "裙子", "红裙", "长裙",
    "上衣", "时尚", "时髦", "年轻", "两",
)  # fmt: skip
ALIASES: dict[str, str] = {word: name for name, line in _OTHER_NAMES.items() for word in line.split()}
