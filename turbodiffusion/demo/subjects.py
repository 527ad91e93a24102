"""The subjects of the demo world: one hand-written row each, checked by eye against the drawings.

`art` names the animated picture in the npm packages @lobehub/fluent-emoji-anim-1 to -4 (code point in hex). A subject
moves as its `kind` does: walkers run, vehicles drive, boats sail, swimmers swim, flyers and craft fly, things jump
and fall.
"""

from dataclasses import dataclass

LAND = ("garden", "meadow", "forest", "beach", "desert", "snow", "city")
AIR = (*LAND, "sky", "sky")
WATER = ("underwater",)

# What each kind can do, and where it lives unless its row says otherwise. A name that stands twice is drawn twice as
# often.
KIND_MOTIONS: dict[str, tuple[str, ...]] = {
    "walker": ("walk", "walk", "run", "run", "jump", "spin", "circle", "approach", "recede", "still"),
    "vehicle": ("walk", "run", "run", "jump", "spin", "approach", "recede", "still"),
    "boat": ("walk", "walk", "run", "circle", "approach", "recede", "still"),
    "swimmer": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "flyer": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "craft": ("fly", "fly", "fly", "circle", "spin", "approach", "recede", "still"),
    "thing": ("jump", "spin", "fall", "circle", "approach", "recede", "still"),
    "floater": ("fly", "fly", "fall", "spin", "circle", "approach", "recede", "still"),
    "ball": ("walk", "run", "jump", "fall", "approach", "recede"),
}
KIND_SCENES: dict[str, tuple[str, ...]] = {
    "walker": LAND,
    "vehicle": LAND,
    "boat": ("sea",),
    "swimmer": WATER,
    "flyer": AIR,
    "thing": LAND,
    "craft": AIR,
    "floater": AIR,
    "ball": LAND,
}


@dataclass(frozen=True)
class Subject:
    """One subject.

    name: English; chinese and measure: Chinese noun and its measure word (一只猫); art: code of the picture; kind: a
    key of KIND_MOTIONS; colour: the colour word that its own paint earns, "" if none does; facing: where the
    drawing looks, "left", "right" or "front"; scenes: where it lives ("" kind's own); window: first and last
    share of the loop that is used, played to and fro when it is not all of it; crop: share of the picture's
    height cut off at the bottom (painted water under boats); points: the angle in degrees at which the drawing's
    nose points, 0 along its facing, 90 up.
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

    @property
    def glass(self) -> bool:
        """Whether blue parts are windows, which keep their colour when the subject is painted."""
        return self.kind in ("vehicle", "craft")

    @property
    def habitat(self) -> tuple[str, ...]:
        return self.scenes or KIND_SCENES[self.kind]

    @property
    def motions(self) -> tuple[str, ...]:
        return KIND_MOTIONS[self.kind]


SUBJECTS: tuple[Subject, ...] = (
    Subject("cat", "猫", "只", "1f408", "walker", "orange"),
    Subject("dog", "狗", "只", "1f415", "walker"),
    Subject("horse", "马", "匹", "1f40e", "walker", "brown"),
    Subject("cow", "奶牛", "头", "1f404", "walker"),
    Subject("pig", "猪", "头", "1f416", "walker", "pink"),
    Subject("elephant", "大象", "头", "1f418", "walker"),
    Subject("rabbit", "兔子", "只", "1f407", "walker", "white"),
    Subject("tiger", "老虎", "只", "1f405", "walker", "orange"),
    Subject("turtle", "乌龟", "只", "1f422", "walker", "green", window=(0.0, 0.34)),
    Subject("penguin", "企鹅", "只", "1f427", "walker", "", "front"),
    Subject("giraffe", "长颈鹿", "只", "1f992", "walker", "orange"),
    Subject("zebra", "斑马", "匹", "1f993", "walker"),
    Subject("dinosaur", "恐龙", "只", "1f996", "walker", "green"),
    Subject("chick", "小鸡", "只", "1f424", "walker", "yellow"),
    Subject("rooster", "公鸡", "只", "1f413", "walker", "brown"),
    Subject(
        "crab", "螃蟹", "只", "1f980", "walker", "red", "front", ("beach", "beach", "desert", "garden", "underwater")
    ),
    Subject("duck", "鸭子", "只", "1f986", "walker", scenes=("sea", "sea", "meadow", "garden", "snow")),
    Subject("bird", "小鸟", "只", "1f426", "flyer", "red"),
    Subject("butterfly", "蝴蝶", "只", "1f98b", "flyer", "orange", "front"),
    Subject("bee", "蜜蜂", "只", "1f41d", "flyer", "yellow"),
    Subject("whale", "鲸鱼", "头", "1f40b", "swimmer", "blue"),
    Subject("fish", "鱼", "条", "1f41f", "swimmer", "blue"),
    Subject("shark", "鲨鱼", "条", "1f988", "swimmer"),
    Subject("octopus", "章鱼", "只", "1f419", "swimmer", "orange", "front"),
    Subject("car", "汽车", "辆", "1f697", "vehicle", "red"),
    Subject("bus", "公交车", "辆", "1f68c", "vehicle", "yellow"),
    Subject("tractor", "拖拉机", "辆", "1f69c", "vehicle", "green"),
    Subject("sailboat", "帆船", "艘", "26f5", "boat", "yellow", crop=0.2),
    Subject("rocket", "火箭", "枚", "1f680", "craft", "", "right", ("space", "space", "sky", *LAND), points=47.0),
    Subject("helicopter", "直升机", "架", "1f681", "craft", "orange"),
    Subject("flying saucer", "飞碟", "艘", "1f6f8", "craft", "", "front", ("space", "space", "sky", *LAND)),
    Subject("balloon", "气球", "个", "1f388", "floater", "red", "front"),
    Subject("snowman", "雪人", "个", "26c4", "thing", "white", "front", ("snow", "snow", "snow", *LAND)),
    Subject("ghost", "幽灵", "个", "1f47b", "floater", "white", "front"),
)

BY_NAME: dict[str, Subject] = {subject.name: subject for subject in SUBJECTS}
