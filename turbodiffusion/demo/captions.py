"""Captions of the demo world from its factors: English, Chinese and mixed, always subject, action, setting, light,
camera, style.

Words are dropped at random, so that a model also learns what to do when a prompt leaves something open; subject and
motion nearly always stay. `describe_gap` is the other direction: what a prompt asks for that the world does not have.
"""

from collections.abc import Sequence

import numpy as np

from turbodiffusion.demo import words
from turbodiffusion.demo.factors import CAMERAS, MOTIONS, NATURAL, STYLES, TRAVELS, Factors
from turbodiffusion.demo.subjects import BY_NAME

LANGUAGES = ("en", "zh", "mixed")
STILL, PLAIN = "still", "3D cartoon"  # a camera and a style that a caption may name though they are the usual ones
# What a caption can tell, and the answers; "" is an open question.
TOLD: dict[str, tuple[str, ...]] = {
    "subject": tuple(BY_NAME),
    "second": ("", *BY_NAME),
    "company": ("", "beside", "chased"),
    "colour": ("", *words.COLOURS),
    "motion": MOTIONS,
    "direction": ("", *words.DIRECTIONS),
    "size": ("", *words.SIZES),
    "scene": ("", *words.PLACES),
    "light": ("", *words.LIGHTS),
    "camera": ("", STILL, *CAMERAS[1:]),
    "style": ("", PLAIN, *STYLES[1:]),
}


def caption(factors: Factors, rng: np.random.Generator, language: str = "", *, full: bool = False) -> str:
    """One caption. language: "en", "zh", "mixed", or "" to draw one (45, 45, 10 percent). full: drop nothing,
    and use the first names of things (evaluation prompts)."""
    return caption_and_told(factors, rng, language, full=full)[0]


def caption_and_told(
    factors: Factors, rng: np.random.Generator, language: str = "", *, full: bool = False
) -> tuple[str, dict[str, str]]:
    """`caption`, and what it tells: an answer of TOLD for each question, "" where it leaves it open."""
    language = language or str(rng.choice(LANGUAGES, p=(0.45, 0.45, 0.1)))
    said = _Said(factors, rng, full)
    if language == "en":
        text = _english(said, said.subject_en, said.colour_en)
    elif language == "zh":
        text = _chinese(said, said.subject_zh, said.colour_zh)
    elif rng.random() < 0.5:
        text = _english(said, said.subject_zh, said.colour_en)
    else:
        text = _chinese(said, said.subject_en, said.colour_zh)
    return text, {
        "subject": factors.subject,
        "second": factors.second,
        "company": ("chased" if factors.chased else "beside") if factors.second else "",
        "colour": "gray" if said.colour_en == "grey" else said.colour_en,
        "motion": factors.motion,
        "direction": said.direction,
        "size": said.size,
        "scene": said.place,
        "light": said.light,
        "camera": "" if said.camera is None else said.camera or STILL,
        "style": "" if said.style is None else said.style or PLAIN,
    }


class _Said:
    """Which factors this caption tells, and the random choices between words that mean the same."""

    def __init__(self, factors: Factors, rng: np.random.Generator, full: bool) -> None:
        def keeps(chance: float) -> bool:
            return full or rng.random() < chance

        self.factors, self.rng, self.full = factors, rng, full
        row = factors.row
        colour = factors.colour_word if keeps(0.96 if factors.colour != NATURAL else 0.5) else ""
        self.colour_en, self.colour_zh = colour, words.COLOURS.get(colour, "")
        if colour == "gray" and rng.random() < 0.5:
            self.colour_en = "grey"
        self.subject_en, self.subject_zh = row.name, row.chinese
        if row.name in words.SYNONYMS and not full and rng.random() < 0.55:
            english, chinese = words.SYNONYMS[row.name]
            self.subject_en, self.subject_zh = self.pick(english or (row.name,)), self.pick(chinese or (row.chinese,))
        wears = words.WEARS.get(row.name) if factors.style == "" and not full and rng.random() < 0.2 else None
        self.wears_en, self.wears_zh = (self.pick(wears[0]), self.pick(wears[1])) if wears else ("", "")
        self.measure = row.measure if full or rng.random() < 0.9 else "个"  # 个 counts anything, in speech
        self.direction = factors.direction if keeps(0.94) else ""
        self.size = factors.size if keeps(0.9) else ""
        self.speed = factors.speed if keeps(0.9) else ""
        self.place = factors.scene if keeps(0.92) else ""
        self.light = factors.light if keeps(0.6 if factors.light == "sunny" else 0.88) else ""
        self.camera: str | None = factors.camera if (keeps(0.9) if factors.camera else rng.random() < 0.04) else None
        self.style: str | None = factors.style if (keeps(0.9) if factors.style else rng.random() < 0.08) else None
        manners = (factors.manner, words.LIKE.get(factors.manner, ""), "")
        self.verbs = next(words.VERBS[m, factors.motion] for m in manners if (m, factors.motion) in words.VERBS)
        self.second = BY_NAME[factors.second] if factors.second else None
        details = words.DETAILS.get(self.place) if not full and rng.random() < 0.4 else None
        self.detail_en, self.detail_zh = (self.pick(details[0]), self.pick(details[1])) if details else ("", "")
        # A landscape needs no subject: its plant may be all that sways.
        self.landscape = not full and factors.subject == "tree" and self.place == "hill" and rng.random() < 0.4
        if self.landscape:
            self.detail_en, self.detail_zh = (self.pick(phrases[-2:]) for phrases in words.DETAILS["hill"])

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def pick_pair(self, options: Sequence[tuple[str, str]]) -> tuple[str, str]:
        return options[int(self.rng.integers(len(options)))]


def with_article(phrase: str) -> str:
    """ "an orange cat", "a unicorn": by the sound that the phrase begins with, as far as this world's words need it."""
    vowel = phrase[:1].lower() in "aeiou" and not phrase.lower().startswith(("uni", "one", "eu", "use", "ufo"))
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(verb: str) -> str:
    """What two do where one does `verb` (third person): "flies" -> "fly", "looks up and smiles" -> "look up and
    smile"."""
    return " and ".join(_plural(part) for part in verb.split(" and "))


def _plural(verb: str) -> str:
    first, _, rest = verb.partition(" ")
    if first == "is":
        first = "are"
    elif first.endswith("ies"):
        first = first.removesuffix("ies") + "y"
    elif first.endswith(("ches", "shes", "oes")):
        first = first.removesuffix("es")
    else:
        first = first.removesuffix("s")
    return f"{first} {rest}".strip()


def several(noun: str) -> str:
    """The plural of a subject's name: "butterfly" -> "butterflies"."""
    if noun == "fish":
        return noun
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else f"{noun}s"


def _english(said: _Said, subject: str, colour: str) -> str:
    factors, rng = said.factors, said.rng
    light = words.LIGHTS.get(said.light)
    extras = [said.pick(words.CAMERAS[said.camera][0])] if said.camera is not None else []
    extras += [said.pick(words.STYLES[said.style][0])] if said.style is not None else []
    if said.landscape:
        return ", ".join([said.detail_en, *([said.pick(light[1])] if light else []), *extras])
    size = said.pick(words.SIZES[said.size][0]) if said.size else ""
    who = with_article(" ".join(part for part in (size, colour, subject) if part))
    who = f"{who} {said.wears_en}".strip()
    third, participle = said.verbs[0][int(rng.integers(len(said.verbs[0])))]
    progressive = third if third.startswith("is ") else f"is {participle}"
    if said.second is not None and factors.chased:
        third, participle = said.pick_pair(words.CHASES[0][: 2 if factors.motion == "run" else 1])
        prey = with_article(said.second.name) if factors.chased == 1 else several(said.second.name)
        third, participle = f"{third} {prey}", f"{participle} {prey}"
        progressive = f"is {participle}"
    elif said.second is not None:
        who, third, progressive = f"{who} and {with_article(said.second.name)}", plural(third), plural(progressive)
    forms = (("", third), ("", third), ("", progressive), ("", participle), ("a video of ", participle))
    opening, verb = forms[int(rng.integers(len(forms)))]
    parts = [f"{opening}{who} {verb}"]
    direction = said.pick(words.DIRECTIONS[said.direction][0]) if said.direction else ""
    speed = said.pick(words.SPEEDS[said.speed][0]) if said.speed and "fast" not in verb else ""
    parts += [direction, speed] if rng.random() < 0.5 else [speed, direction]
    before = bool(light and light[0] and said.place and said.place != "underwater" and rng.random() < 0.6)
    if said.place in words.OTHER_PLACES and not before and not said.full and rng.random() < 0.6:
        rest, travel = said.pick_pair(words.OTHER_PLACES[said.place][0])
        parts.append(travel if factors.motion in TRAVELS else rest)
    elif said.place:
        article, noun, rest, travel, *_ = words.PLACES[said.place]
        named = f"{light[0]} {noun}" if light and before else noun
        article = "the" if article == "a" and rng.random() < 0.15 else article
        where = with_article(named) if article == "a" else f"{article} {named}".strip()
        parts.append(f"{travel if factors.motion in TRAVELS else rest} {where}")
    ahead = []
    if light and not before:
        phrase = said.pick(light[1])
        if phrase.startswith("as ") and rng.random() < 0.5:
            ahead = [phrase.removeprefix("as ")]
        else:
            parts.append(phrase)
    sentence = " ".join(part for part in parts if part)
    detail = [said.detail_en] if said.detail_en else []
    return ", ".join([*ahead, sentence, *detail, *extras])


def _chinese(said: _Said, subject: str, colour: str) -> str:
    factors, rng = said.factors, said.rng
    light = words.LIGHTS.get(said.light)
    extras = [said.pick(words.CAMERAS[said.camera][1])] if said.camera is not None else []
    extras += [said.pick(words.STYLES[said.style][1])] if said.style is not None else []
    if said.landscape:
        return "，".join([*([said.pick(light[3])] if light else []), said.detail_zh, *extras])
    plain, long = words.SIZES[said.size][1] if said.size else ("", "")
    if subject.startswith(("小", "大")) or rng.random() < 0.4:
        plain = ""  # 大象 would become 大大象
    else:
        long = ""
    painted = f"{colour}的" if colour else ""
    counted = f"一{said.measure}" if said.full or rng.random() < 0.88 else ""
    who = f"{counted}{said.wears_zh}{long}{painted}{plain}{subject}"
    verb = said.pick(said.verbs[1])
    if said.second is not None and factors.chased:
        count = ("", "", f"一{said.second.measure}", f"两{said.second.measure}")
        verb = said.pick(words.CHASES[1]) + count[factors.chased + 1 if rng.random() < 0.4 else 0] + said.second.chinese
    elif said.second is not None:
        who += f"和一{said.second.measure}{said.second.chinese}"
    way = words.DIRECTIONS[said.direction][1] if said.direction else ""
    speed = said.pick(words.SPEEDS[said.speed][1]) if said.speed and "快" not in verb else ""
    before = bool(light and said.place and said.place != "underwater" and rng.random() < 0.6)
    where = ""
    if said.place in words.OTHER_PLACES and not before and not said.full and rng.random() < 0.6:
        where = f"在{said.pick(words.OTHER_PLACES[said.place][1])}"
    elif said.place:
        *_, noun, particle = words.PLACES[said.place]
        where = f"在{light[2] if light and before else ''}{noun}{particle}"
    if where and verb in words.BEFORE_PLACE and rng.random() < 0.35:
        did = f"{speed}{way}{verb}{where}"
    else:
        did = f"{'正' if where and rng.random() < 0.12 else ''}{where}{speed}{way}{verb}"
    sentence = ("", "", "视频：")[int(rng.integers(3))] + f"{who}{did}"
    parts = [sentence, *([said.detail_zh] if said.detail_zh else [])]
    if light and not before:
        parts.insert(0 if said.light in ("petals", "leaves") and rng.random() < 0.6 else 1, said.pick(light[3]))
    return "，".join([*parts, *extras])
