"""Words of ordinary prompts beside the demo world's own: what means the same, and what comes nearest to the rest.

Nearest by meaning and by kind of word: a verb's nearest is a verb, a camera's a camera.
"""

import re
from collections.abc import Iterator

from turbodiffusion.demo import words

# What is shown of a motion, English and Chinese.
_MOTIONS: dict[str, tuple[str, str]] = {
    "run": ("runs", "奔跑"),
    "walk": ("walks", "走"),
    "jump": ("jumps", "跳跃"),
    "fly": ("flies", "飞"),
    "swim": ("swims", "游"),
    "rise": ("flies up", "向上飞"),
    "fall": ("falls", "落下"),
    "spin": ("spins", "旋转"),
    "circle": ("moves in circles", "绕圈"),
    "roll": ("rolls", "滚动"),
    "drive": ("drives", "行驶"),
    "sail": ("sails", "航行"),
    "approach": ("comes closer", "靠近"),
    "recede": ("moves away", "远去"),
    "still": ("stands still", "站着不动"),
}
# Verbs that mean one of these: nothing is said of them.
_SAME: dict[str, str] = {
    "run": "gallop trot sprint jog rush hurry scamper bolt bound canter charge 奔驰 小跑 冲 狂奔 疾跑",
    "walk": "wander stride march pace roam step travel trek 散步 走动 踱步 前进 行进",
    "jump": "leap skip spring hop 跳起 蹦 跃起",
    "fly": "soar glide flutter hover 翱翔 飞翔 飞舞 滑翔 飞过",
    "swim": "paddle dive 游泳 游过 潜水",
    "rise": "ascend climb lift launch 升起 上升 升空 飘起 起飞 飞起 飞升",
    "fall": "drop sink descend land tumble 掉下 下降 降落 下落",
    "spin": "twirl whirl turn pirouette 自转",
    "roll": "rolling",
    "drive": "cruise 驶过 开过",
    "sail": "cruise 驶过",
    "approach": "come arrive 走来 跑来 飞来 过来",
    "recede": "leave depart vanish 走远 飞走 离去",
    "still": "wait pose pause remain 静止 停住 等待",
}
# Verbs of which the world has only something near.
_NEAR: dict[str, str] = {
    "still": "sit sleep lie rest eat drink read look watch sing play smile laugh cry talk bark meow wave cook paint "
    "write think dream nap kneel lean hold hug kiss 坐 睡 躺 趴 吃 喝 看 读 唱 玩 笑 哭 说 叫 做 画 写 拿 抱 弹",
    "run": "chase hunt fight skate escape attack 打 追猎 打架 滑冰 逃跑",
    "walk": "crawl sneak creep climb hike limp shop 爬 爬行 逛",
    "swim": "surf float bathe splash 冲浪 漂浮 洗澡",
    "spin": "dance shake swing 跳舞 摇晃",
    "fall": "explode break melt crash pour 爆炸 融化 倒",
    "jump": "bounce kick punch box 踢 拳击",
}
_IRREGULAR = {
    "ran": "run", "flew": "fly", "flown": "fly", "swam": "swim", "swum": "swim", "fell": "fall", "fallen": "fall",
    "came": "come", "went": "go", "stood": "stand", "sat": "sit", "slept": "sleep", "ate": "eat", "eaten": "eat",
    "drove": "drive", "driven": "drive", "rode": "ride", "ridden": "ride", "risen": "rise",
    "spun": "spin", "leapt": "leap", "sank": "sink", "drank": "drink", "sang": "sing", "swung": "swing",
    "left": "leave", "lay": "lie", "lying": "lie", "held": "hold", "broke": "break", "fought": "fight",
    "wolves": "wolf", "leaves": "leaf", "mice": "mouse", "geese": "goose", "men": "man", "women": "woman",
    "children": "child", "feet": "foot", "knives": "knife",
}  # fmt: skip
# Words of cameras; the second group has no camera of the world's, and the model does what it can.
_CAMERA_EN = frozenset(
    "camera lens orbit orbits orbiting dolly tracking zoom pan tilt closeup close-up filmed".split()  # noqa: SIM905
)
_CAMERA_FAR = frozenset(
    "drone aerial crane handheld pov steadicam timelapse wide-angle macro bokeh".split()  # noqa: SIM905
)
_CAMERA_ZH = re.compile("拍摄|镜头|运镜|航拍|俯拍|仰拍|特写|无人机|跟拍|广角")
# Chinese phrases that ask for nothing else than what the world has.
UNDERSTOOD_ZH: tuple[str, ...] = (
    "水", "水里", "水中", "水下", "水面", "拍摄", "环绕", "环绕拍摄", "运镜", "推进", "拉远", "推近", "跟随", "跟拍",
    "天", "空中", "夜空", "地上", "路上", "气球", "阳光", "明媚", "灿烂", "背景", "清晰", "高清", "细节", "写实",
)  # fmt: skip
_CAMERAS = (("camera pans left", "镜头向左平移"), ("camera zooms in", "镜头推近"))
_ADVERBS = (("slowly", "慢慢地"), ("quickly", "飞快地"))
_NO_VERBS = frozenset(
    "king ring wing string spring building ceiling evening morning wedding painting clothing lightning "  # noqa: SIM905
    "bed seed weed hundred sacred shed sled".split()
)


def bases(word: str) -> Iterator[str]:
    """Yield a word and what it may be an inflection of: runs, running, hurried, chased, butterflies, wolves."""
    yield word
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    for ending, others in (("'s", ("",)), ("ies", ("y",)), ("es", ("", "e")), ("s", ("",)), ("ied", ("y",))):
        if word.endswith(ending):
            yield from (word.removesuffix(ending) + other for other in others)
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word.removesuffix(ending)
            yield from (stem, f"{stem}e")
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def _table(lines: dict[str, str]) -> dict[str, str]:
    return {word: motion for motion, line in lines.items() for word in line.split()}


SAME, NEAR = _table(_SAME), _table(_NEAR)


def is_understood(word: str) -> bool:
    """Whether an English word means what the world has under another name: gallops, rises, orbiting."""
    return any(base in SAME or base in _CAMERA_EN or base in _MOTIONS for base in bases(word))


def nearest(word: str, subject_before: bool, names: list[str]) -> list[tuple[str, str]]:
    """Return what comes nearest to an unknown word, English and Chinese; nothing where nothing is near.

    subject_before: the word stands behind a subject, where a verb does. names: what the world has of subjects, places
    and colours, as `words` names them.
    """
    if word in _CAMERA_FAR or _CAMERA_ZH.search(word):
        return list(_CAMERAS)
    within = sorted((alias for alias in (*words.ALIASES, *NEAR) if alias in word and not alias.isascii()), key=len)
    for form in (*bases(word), *reversed(within)):
        if form in NEAR:
            return [_MOTIONS[NEAR[form]]]
        if words.ALIASES.get(form) in names:
            return [(words.ALIASES[form], "")]
    if not word.isascii():
        return []
    if word.endswith("ly") and len(word) > 4:
        return list(_ADVERBS)
    if _looks_a_verb(word, subject_before):
        return [_MOTIONS[motion] for motion in ("walk", "run", "jump")]
    return []


def _looks_a_verb(word: str, subject_before: bool) -> bool:
    if word in _NO_VERBS:
        return False
    return word.endswith(("ing", "ed")) or (subject_before and word.endswith("s") and not word.endswith("ss"))
