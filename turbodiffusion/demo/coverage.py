"""What a prompt asks for that the demo world does not have, and the nearest things that it knows: one line, in the
prompt's language."""

import difflib
import re
from functools import cache

from turbodiffusion.demo import near, words
from turbodiffusion.demo.captions import plural
from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS, Subject
from turbodiffusion.texts import text

# Words of ordinary prompts that ask for nothing: grammar, and what every video is anyway.
PLAIN_EN = (
    "3d a across along an and animation are around as at away back beautiful by camera cartoon clip closer "
    "cute d day detailed down fast film from go goes going happy her high his in into is it its left little "
    "move moves movie moving of on one or over pretty quality quickly right scene shot showing shows side slow "
    "slowly some still style that the their then there this through time to toward towards under up very video "
    "view while with was were be been being has have had will would can it's its they them he she that which who but "
    "so then as no not many few both all "
)
PLAIN_ZH = frozenset(
    "一个只头匹条辆艘架枚的地得着了在里上中下面旁边正是有和与它他她们这那很非常可爱漂亮美丽视频画面影片动画镜头小大慢快向左右往从到过去来"
)
LIMIT = 4  # things named in a notice


def unknown_words(prompt: str, subjects: tuple[Subject, ...] = SUBJECTS) -> list[str]:
    """Return the words of a prompt, English or Chinese, that the demo world has nothing for, in order and once each."""
    return [word for word, _ in _unknown(prompt, subjects)]


def _unknown(prompt: str, subjects: tuple[Subject, ...]) -> list[tuple[str, bool]]:
    """The unknown words, and whether each stands behind a subject, as a verb does."""
    english, chinese = _known(subjects)
    unknown: dict[str, bool] = {}
    before = ""
    for word in re.findall(r"[a-z0-9][a-z0-9'-]*", prompt.lower()):
        if not word.isdigit() and not _is_known_english(word, english):
            unknown.setdefault(word, _names_subject(before, SUBJECTS) or before in words.ALIASES)
        before = word
    for run in re.findall(r"[\u3400-\u9fff]+", prompt):
        for word in _unknown_chinese(run, chinese):
            unknown.setdefault(word, False)
    return list(unknown.items())


def describe_gap(prompt: str, subjects: tuple[Subject, ...] = SUBJECTS) -> str | None:
    """Return a notice for a prompt outside the demo world, None for one inside.

    It says in the prompt's language what is not known, and the nearest by meaning and kind of word where there is one.
    subjects: the rows that the model was trained on, the whole table unless said.
    """
    unknown = _unknown(prompt, subjects)[:LIMIT]
    chinese = bool(re.search(r"[\u3400-\u9fff]", prompt))
    if not unknown:
        if _names_subject(prompt, subjects):
            return None
        known = [_chinese_name(row.name) if chinese else row.name for row in subjects[:LIMIT]]
        return text("demo.no_subject", known=known).render("zh" if chinese else "en")
    nearest = _all_nearest(unknown, subjects, chinese)
    listed = [word for word, _ in unknown]
    said = text("demo.unknown_near", words=listed, near=nearest) if nearest else text("demo.unknown", words=listed)
    return said.render("zh" if chinese else "en")


def _all_nearest(unknown: list[tuple[str, bool]], subjects: tuple[Subject, ...], chinese: bool) -> list[str]:
    """What comes nearest to each of the words, in the prompt's language, once each."""
    names = [*(row.name for row in subjects), *words.PLACES, *words.COLOURS]
    found: list[str] = []
    for word, after_subject in unknown:
        pairs = near.nearest(word, after_subject, names)
        pairs = pairs or _kin(word, subjects)
        pairs = pairs or [(name, "") for name in difflib.get_close_matches(word, names, n=2, cutoff=0.75)]
        found += [(zh or _chinese_name(en)) if chinese else en for en, zh in pairs]
    return list(dict.fromkeys(found))[:LIMIT]


def _kin(word: str, subjects: tuple[Subject, ...]) -> list[tuple[str, str]]:
    """For a word of a subject that the world has and the model has not: others that move alike."""
    names = [words.ALIASES.get(base, base) for base in near.bases(word)]
    names += [row.name for row in SUBJECTS if row.chinese in word]
    found = next((BY_NAME[name] for name in names if name in BY_NAME), None)
    if found is None:
        return []
    kinds = (found.kind, words.LIKE.get(found.kind))
    return [(row.name, "") for row in subjects if row.kind in kinds][:2]


@cache
def _known(subjects: tuple[Subject, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Every English word and every Chinese phrase of the captions, the aliases' targets excepted."""
    english: list[str] = [row.name for row in subjects]
    chinese: list[str] = [word for row in subjects for word in (row.chinese, row.measure)]
    for name in (row.name for row in subjects):
        for also in (words.SYNONYMS, words.WEARS):
            english += also.get(name, ((), ()))[0]
            chinese += also.get(name, ((), ()))[1]
    for en_details, zh_details in words.DETAILS.values():
        english += en_details
        chinese += [part for phrase in zh_details for part in phrase.split("，")]
    for en_places, zh_places in words.OTHER_PLACES.values():
        english += [phrase for pair in en_places for phrase in pair]
        chinese += zh_places
    english += [form for pair in words.CHASES[0] for form in pair]
    chinese += words.CHASES[1]
    for verbs, zh in words.VERBS.values():
        english += [form for pair in verbs for form in (*pair, plural(pair[0]))]
        chinese += zh
    for name, zh_name in words.COLOURS.items():
        english.append(name)
        chinese += [zh_name, zh_name[:-1]]
    for table in (words.SIZES, words.SPEEDS, words.CAMERAS, words.STYLES):
        for en_words, zh_words in table.values():
            english += en_words
            chinese += zh_words
    for en_ways, zh_way in words.DIRECTIONS.values():
        english += en_ways
        chinese.append(zh_way)
    for article, noun, rest, travel, zh_noun, _ in words.PLACES.values():
        english += [article, noun, rest, travel]
        chinese.append(zh_noun)
    for adjective, after, zh_before, zh_after in words.LIGHTS.values():
        english += [adjective, *after]
        chinese += [zh_before, *zh_after]
    singles = {word.strip(",") for phrase in english for word in phrase.lower().split()}
    same = [word for word in near.SAME if not word.isascii()]
    all_english = {base for word in singles | set(PLAIN_EN.split()) | {"grey"} for base in near.bases(word)}
    return frozenset(all_english), frozenset([*chinese, *words.WITHIN_ZH, *near.UNDERSTOOD_ZH, *same, "卡通风格"])


def _is_known_english(word: str, known: frozenset[str]) -> bool:
    """Whether the word, or what it is an inflection of, is known, or means what the world has."""
    return any(base in known for base in near.bases(word)) or near.is_understood(word)


def _unknown_chinese(run: str, known: frozenset[str]) -> list[str]:
    """The stretches of a run of Chinese characters that no reading explains by known phrases and plain characters. Of
    all readings the one with the fewest unknown characters counts: 大海豹 is 大 and 海豹, not 大海 and 豹."""
    best: list[tuple[int, tuple[int, ...]]] = [
        (0, ())
    ]  # for each length: unknown characters so far, and where they are
    for end in range(1, len(run) + 1):
        missed, where = best[end - 1]
        readings = [(missed, where) if run[end - 1] in PLAIN_ZH else (missed + 1, (*where, end - 1))]
        readings += [best[at] for at in range(max(0, end - 8), end) if run[at:end] in known]
        best.append(min(readings))
    unknown: list[str] = []
    positions = best[-1][1]
    for k, at in enumerate(positions):
        if k and positions[k - 1] == at - 1:
            unknown[-1] += run[at]
        else:
            unknown.append(run[at])
    return unknown


def _names_subject(prompt: str, subjects: tuple[Subject, ...]) -> bool:
    """Whether a subject is named, or a landscape that is drawn by its trees alone."""
    low = prompt.lower()
    for row in subjects:
        english, chinese = words.SYNONYMS.get(row.name, ((), ()))
        if row.name == "tree":
            english, chinese = (*english, "leaves"), (*chinese, "树叶")
        if any(
            re.search(rf"(?<![a-z]){re.escape(name.lower())}(s|es)?(?![a-z])", low) for name in (row.name, *english)
        ):
            return True
        if any(name in prompt for name in (row.chinese, *chinese)):
            return True
    return False


def _chinese_name(name: str) -> str:
    if name in BY_NAME:
        return BY_NAME[name].chinese
    return words.COLOURS[name] if name in words.COLOURS else words.PLACES[name][4]
