"""The subjects of the demo world: one hand-written row each, checked by eye against the drawings.

`art` names the animated picture in the npm packages @lobehub/fluent-emoji-anim-1 to -4 (code point in hex). A subject
moves as its `kind` does: walkers run, vehicles drive, boats sail, swimmers swim, flyers and craft fly, things jump
and fall.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LAND = ("garden", "meadow", "forest", "beach", "desert", "snow", "city", "hill", "cherry")
STREET = (*LAND, "city", "neon", "neon")
PARK = ("garden", "meadow", "forest", "hill", "hill", "cherry")
AIR = (*LAND, "sky", "sky")
WATER = ("underwater",)
POND = ("sea", "sea", "meadow", "garden", "snow")

# What each kind can do, and where it lives unless its row says otherwise. A name that stands twice is drawn twice as
# often.
KIND_MOTIONS: dict[str, tuple[str, ...]] = {
    "walker": ("walk", "walk", "run", "run", "jump", "spin", "circle", "approach", "recede", "still"),
    "head": ("walk", "run", "jump", "jump", "spin", "circle", "approach", "recede", "still"),
    "person": ("walk", "walk", "run", "run", "jump", "circle", "approach", "recede", "still"),
    "vehicle": ("walk", "run", "run", "jump", "spin", "approach", "recede", "still"),
    "child": ("walk", "walk", "run", "jump", "circle", "approach", "recede", "still", "still", "still"),
    "dancer": ("walk", "run", "jump", "circle", "approach", "recede", "still", "still"),
    "cycle": ("walk", "run", "run", "approach", "recede", "still"),
    "skier": ("walk", "run", "run", "approach", "recede", "still"),
    "boat": ("walk", "walk", "run", "circle", "approach", "recede", "still"),
    "swimmer": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "flyer": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "craft": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "thing": ("jump", "spin", "fall", "circle", "approach", "recede", "still"),
    "floater": ("fly", "fly", "fall", "spin", "circle", "approach", "recede", "still"),
    "ball": ("walk", "run", "jump", "fall", "approach", "recede"),
    "plant": ("still",),
}
# What a kind can run or fly after, where it lives in the same place: butterflies first.
PREY = ("butterfly", "butterfly", "butterfly", "bee", "rabbit", "chick", "soccer ball", "fish")
CHASERS: dict[str, tuple[str, ...]] = {
    "walker": ("run", "run", "walk"),
    "head": ("run",),
    "person": ("run",),
    "child": ("run",),
    "swimmer": ("fly",),
}
KIND_SCENES: dict[str, tuple[str, ...]] = {
    "walker": LAND,
    "head": LAND,
    "person": STREET,
    "vehicle": STREET,
    "child": (*LAND, "garden", "cherry", "cherry", "neon"),
    "dancer": STREET,
    "cycle": STREET,
    "skier": ("snow",),
    "boat": ("sea",),
    "swimmer": WATER,
    "flyer": AIR,
    "craft": AIR,
    "thing": LAND,
    "floater": AIR,
    "ball": LAND,
    "plant": PARK,
}


@dataclass(frozen=True)
class Subject:
    """One subject.

    name: English; chinese and measure: Chinese noun and its measure word (一只猫); art: code of the picture; kind: a
    key of KIND_MOTIONS; colour: the colour word that its own paint earns, "" if none does; facing: where the
    drawing looks, "left", "right" or "front"; scenes: where it lives ("" kind's own); window: first and last
    share of the loop that is used, played to and fro when it is not all of it; crop: share of the picture's
    height cut off at the bottom (painted water under boats); points: the angle in degrees at which the drawing's
    nose points, 0 along its facing, 90 up; paintable: whether it may wear another colour than its own; glass: its blue
    parts are windows, which keep their colour when it is painted; standing: the picture of it where it goes nowhere, if
    that is another; head: the picture whose head it gets, on a child's body; clothes: colours of its top and its skirt.
    """

    name: str
    chinese: str
    measure: str
    art: str
    kind: str
    colour: str = ""
    facing: str = "left"
    scenes: tuple[str, ...] = ()
    window: tuple[float, float] = (0.0, 1.0)
    crop: float = 0.0
    points: float = 0.0
    paintable: bool = True
    glass: bool = False
    standing: str = ""
    head: str = ""
    clothes: tuple[str, str] | None = None

    @property
    def habitat(self) -> tuple[str, ...]:
        return self.scenes or KIND_SCENES[self.kind]

    @property
    def motions(self) -> tuple[str, ...]:
        return KIND_MOTIONS[self.kind]


SUBJECTS: tuple[Subject, ...] = (
    # on four legs, or more
    Subject("cat", "猫", "只", "1f408", "walker", "orange"),
    Subject("dog", "狗", "只", "1f415", "walker"),
    Subject("horse", "马", "匹", "1f40e", "walker", "brown"),
    Subject("cow", "奶牛", "头", "1f404", "walker"),
    Subject("pig", "猪", "头", "1f416", "walker", "pink"),
    Subject("elephant", "大象", "头", "1f418", "walker", "gray"),
    Subject("rabbit", "兔子", "只", "1f407", "walker", "white"),
    Subject("tiger", "老虎", "只", "1f405", "walker", "orange"),
    Subject("leopard", "豹子", "只", "1f406", "walker", "yellow"),
    Subject("turtle", "乌龟", "只", "1f422", "walker", "green", window=(0.0, 0.34)),
    Subject("giraffe", "长颈鹿", "只", "1f992", "walker", "orange"),
    Subject("zebra", "斑马", "匹", "1f993", "walker"),
    Subject("deer", "鹿", "头", "1f98c", "walker"),
    Subject("sheep", "绵羊", "只", "1f411", "walker", "white"),
    Subject("goat", "山羊", "只", "1f410", "walker", "brown"),
    Subject("llama", "羊驼", "只", "1f999", "walker", "white"),
    Subject("camel", "骆驼", "头", "1f42a", "walker"),
    Subject("kangaroo", "袋鼠", "只", "1f998", "walker"),
    Subject("monkey", "猴子", "只", "1f412", "walker", "brown"),
    Subject("gorilla", "大猩猩", "只", "1f98d", "walker", "gray"),
    Subject("rhinoceros", "犀牛", "头", "1f98f", "walker", "gray"),
    Subject("hippo", "河马", "头", "1f99b", "walker", "gray"),
    Subject("bison", "野牛", "头", "1f9ac", "walker", "brown"),
    Subject("mouse", "老鼠", "只", "1f400", "walker", "gray"),
    Subject("squirrel", "松鼠", "只", "1f43f", "walker"),
    Subject("hedgehog", "刺猬", "只", "1f994", "walker", "brown"),
    Subject("skunk", "臭鼬", "只", "1f9a8", "walker"),
    Subject("seal", "海豹", "只", "1f9ad", "walker", "gray", scenes=("beach", "beach", "snow", "snow", *LAND)),
    Subject("dinosaur", "恐龙", "只", "1f996", "walker", "green"),
    Subject("brachiosaurus", "腕龙", "只", "1f995", "walker", "green"),
    Subject("dragon", "龙", "条", "1f409", "walker", "green"),
    Subject("snake", "蛇", "条", "1f40d", "walker", "green"),
    Subject("lizard", "蜥蜴", "只", "1f98e", "walker", "green"),
    Subject("snail", "蜗牛", "只", "1f40c", "walker", "brown"),
    Subject("caterpillar", "毛毛虫", "条", "1f41b", "walker", "green"),
    Subject("ant", "蚂蚁", "只", "1f41c", "walker", "black"),
    Subject("ladybug", "瓢虫", "只", "1f41e", "walker", "red", "front"),
    Subject("spider", "蜘蛛", "只", "1f577", "walker", "black", "front"),
    Subject("scorpion", "蝎子", "只", "1f982", "walker", "brown", "front"),
    Subject("grasshopper", "蚱蜢", "只", "1f997", "walker", "green"),
    Subject(
        "crab", "螃蟹", "只", "1f980", "walker", "red", "front", ("beach", "beach", "desert", "garden", "underwater")
    ),
    # birds
    Subject("penguin", "企鹅", "只", "1f427", "walker", "", "front"),
    Subject("chick", "小鸡", "只", "1f424", "walker", "yellow"),
    Subject("rooster", "公鸡", "只", "1f413", "walker", "brown"),
    Subject("flamingo", "火烈鸟", "只", "1f9a9", "walker", "pink"),
    Subject("peacock", "孔雀", "只", "1f99a", "walker"),
    Subject("duck", "鸭子", "只", "1f986", "walker", scenes=POND),
    Subject("swan", "天鹅", "只", "1f9a2", "walker", "white", scenes=POND),
    Subject("bird", "小鸟", "只", "1f426", "flyer", "red"),
    Subject("eagle", "老鹰", "只", "1f985", "flyer", "brown"),
    Subject("dove", "鸽子", "只", "1f54a", "flyer", "white"),
    Subject("owl", "猫头鹰", "只", "1f989", "flyer", "brown", "front"),
    Subject("parrot", "鹦鹉", "只", "1f99c", "flyer", "red"),
    # other flyers
    Subject("bat", "蝙蝠", "只", "1f987", "flyer", "brown", "front"),
    Subject("butterfly", "蝴蝶", "只", "1f98b", "flyer", "orange", "front"),
    Subject("bee", "蜜蜂", "只", "1f41d", "flyer", "yellow"),
    # swimmers
    Subject("whale", "鲸鱼", "头", "1f40b", "swimmer", "blue"),
    Subject("fish", "鱼", "条", "1f41f", "swimmer", "blue"),
    Subject("tropical fish", "热带鱼", "条", "1f420", "swimmer"),
    Subject("pufferfish", "河豚", "条", "1f421", "swimmer"),
    Subject("shark", "鲨鱼", "条", "1f988", "swimmer", "gray"),
    Subject("dolphin", "海豚", "只", "1f42c", "swimmer", "blue", window=(0.55, 1.0)),
    Subject("octopus", "章鱼", "只", "1f419", "swimmer", "orange", "front"),
    Subject("squid", "鱿鱼", "只", "1f991", "swimmer", "pink", "front"),
    Subject("shrimp", "虾", "只", "1f990", "swimmer", "orange"),
    # heads that hop
    Subject("panda", "熊猫", "只", "1f43c", "head", "", "front", paintable=False),
    Subject("fox", "狐狸", "只", "1f98a", "head", "orange", "front"),
    Subject("lion", "狮子", "头", "1f981", "head", "", "front"),
    Subject("wolf", "狼", "只", "1f43a", "head", "gray", "front"),
    Subject("bear", "熊", "头", "1f43b", "head", "brown", "front"),
    Subject("koala", "考拉", "只", "1f428", "head", "gray", "front"),
    Subject("frog", "青蛙", "只", "1f438", "head", "green", "front"),
    Subject("unicorn", "独角兽", "只", "1f984", "head", "purple"),
    Subject("robot", "机器人", "个", "1f916", "head", "", "front", (*LAND, "space")),
    Subject("alien", "外星人", "个", "1f47d", "head", "green", "front", (*LAND, "space", "space")),
    # people
    Subject(
        "woman",
        "女人",
        "位",
        "1f6b6-1f3fb-200d-2640-fe0f",
        "person",
        paintable=False,
        standing="1f9cd-1f3fb-200d-2640-fe0f",
        clothes=("white", "red"),
    ),
    Subject(
        "man",
        "男人",
        "个",
        "1f6b6-1f3fb-200d-2642-fe0f",
        "person",
        paintable=False,
        standing="1f9cd-1f3fb-200d-2642-fe0f",
    ),
    Subject(
        "girl",
        "女孩",
        "个",
        "1f6b6-1f3fb-200d-2640-fe0f",
        "child",
        paintable=False,
        standing="1f9cd-1f3fb-200d-2640-fe0f",
        head="1f467-1f3fb",
        clothes=("pink", "pink"),
    ),
    Subject("runner", "跑步者", "名", "1f3c3", "person", paintable=False),
    Subject("dancer", "舞者", "名", "1f483-1f3fb", "dancer", "red", paintable=False),
    Subject("wizard", "巫师", "名", "1f9d9", "person", "blue", "front", paintable=False),
    Subject("ninja", "忍者", "名", "1f977", "person", "black", "front", paintable=False),
    Subject("cyclist", "骑手", "名", "1f6b4", "cycle", paintable=False),
    Subject("skier", "滑雪者", "名", "26f7", "skier", paintable=False),
    Subject(
        "astronaut", "宇航员", "名", "1f9d1-200d-1f680", "floater", "white", "front", ("space", "sky"), paintable=False
    ),
    Subject("fairy", "仙女", "名", "1f9da", "flyer", "", "front", paintable=False),
    Subject("mermaid", "美人鱼", "条", "1f9dc-200d-2640-fe0f", "swimmer", "", "front", paintable=False),
    # what drives
    Subject("car", "汽车", "辆", "1f697", "vehicle", "red", glass=True),
    Subject("bus", "公交车", "辆", "1f68c", "vehicle", "yellow", glass=True),
    Subject("truck", "卡车", "辆", "1f69a", "vehicle", "yellow", glass=True),
    Subject("tractor", "拖拉机", "辆", "1f69c", "vehicle", "green", glass=True),
    Subject("train", "火车", "列", "1f682", "vehicle", glass=True),
    Subject("race car", "赛车", "辆", "1f3ce", "vehicle", "red", glass=True),
    Subject("motorcycle", "摩托车", "辆", "1f3cd", "vehicle", "red", glass=True),
    Subject("bicycle", "自行车", "辆", "1f6b2", "vehicle", "red", glass=True),
    Subject("taxi", "出租车", "辆", "1f695", "vehicle", "yellow", paintable=False),
    Subject("ambulance", "救护车", "辆", "1f691", "vehicle", "", paintable=False),
    Subject("fire truck", "消防车", "辆", "1f692", "vehicle", "red", paintable=False),
    Subject("police car", "警车", "辆", "1f693", "vehicle", "", paintable=False),
    # what sails
    Subject("sailboat", "帆船", "艘", "26f5", "boat", "yellow", crop=0.2),
    Subject("speedboat", "快艇", "艘", "1f6a4", "boat", "red", crop=0.3),
    Subject("canoe", "独木舟", "艘", "1f6f6", "boat", "orange", crop=0.22),
    # what flies by engine or wind
    Subject(
        "rocket", "火箭", "枚", "1f680", "craft", "", "right", ("space", "space", "sky", *LAND), points=47.0, glass=True
    ),
    Subject("airplane", "飞机", "架", "2708", "craft", "", "right", ("sky", "sky", *LAND), points=47.0),
    Subject("helicopter", "直升机", "架", "1f681", "craft", "orange", glass=True),
    Subject("flying saucer", "飞碟", "艘", "1f6f8", "craft", "", "front", ("space", "space", "sky", *LAND), glass=True),
    Subject("balloon", "气球", "个", "1f388", "floater", "red", "front"),
    Subject("kite", "风筝", "只", "1fa81", "floater", paintable=False),
    Subject("parachute", "降落伞", "个", "1fa82", "floater", "", "front", paintable=False),
    # plants, which sway
    Subject("tree", "树", "棵", "1f333", "plant", "green", "front"),
    Subject("sunflower", "向日葵", "朵", "1f33b", "plant", "yellow", "front", paintable=False),
    Subject("tulip", "郁金香", "朵", "1f337", "plant", "pink", "front", paintable=False),
    # things
    Subject("snowman", "雪人", "个", "26c4", "thing", "white", "front", ("snow", "snow", "snow", *LAND)),
    Subject("ghost", "幽灵", "个", "1f47b", "floater", "white", "front"),
    Subject("pumpkin", "南瓜", "个", "1f383", "thing", "orange", "front"),
    Subject("Christmas tree", "圣诞树", "棵", "1f384", "thing", "green", "front", paintable=False),
    Subject("teddy bear", "泰迪熊", "只", "1f9f8", "thing", "brown", "front"),
    Subject("cake", "蛋糕", "个", "1f382", "thing", "", "front"),
    Subject("gift", "礼物", "份", "1f381", "thing", "yellow", "front"),
    Subject("apple", "苹果", "个", "1f34e", "ball", "red", "front"),
    Subject("strawberry", "草莓", "颗", "1f353", "thing", "red", "front", paintable=False),
    Subject("star", "星星", "颗", "2b50", "thing", "yellow", "front", (*LAND, "space")),
    Subject("heart", "爱心", "颗", "2764", "thing", "red", "front"),
    Subject("umbrella", "雨伞", "把", "2602", "floater", "purple", "front"),
    Subject("soccer ball", "足球", "个", "26bd", "ball", "", "front", paintable=False),
    Subject("basketball", "篮球", "个", "1f3c0", "ball", "orange", "front", paintable=False),
)

# The subjects of the model that ships, chosen by eye: each is told from every other at 128 pixels, in any paint.
RELEASE: tuple[str, ...] = (
    "cat", "dog", "horse", "cow", "pig", "elephant", "rabbit", "tiger", "turtle", "giraffe", "zebra", "deer", "camel",
    "monkey", "squirrel", "dinosaur", "snail", "ladybug", "crab", "penguin", "chick", "flamingo", "peacock", "duck",
    "owl", "parrot", "butterfly", "bee", "fish", "shark", "dolphin", "octopus", "panda", "fox", "lion", "frog",
    "unicorn", "robot", "alien", "woman", "man", "girl", "dancer", "wizard", "cyclist", "astronaut", "mermaid", "car",
    "bus", "truck", "tractor", "train", "motorcycle", "sailboat", "rocket", "airplane", "helicopter", "flying saucer",
    "balloon", "kite", "tree", "sunflower", "snowman", "pumpkin", "Christmas tree", "teddy bear", "heart", "umbrella",
    "soccer ball",
)  # fmt: skip

BY_NAME: dict[str, Subject] = {subject.name: subject for subject in SUBJECTS}


def named(names: Sequence[str]) -> tuple[Subject, ...]:
    """The rows of those names that the table has."""
    return tuple(BY_NAME[name] for name in names if name in BY_NAME)
