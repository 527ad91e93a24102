"""What a prompt asks for that the demo world does not have, and the nearest things that it knows: one line, in the
prompt's language."""

import difflib
import re
from functools import cache

from turbodiffusion.demo import words
from turbodiffusion.demo.captions import plural
from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS, Subject

# Words of ordinary prompts that ask for nothing: grammar, and what every video is anyway.
PLAIN_EN = (
    "3d a across along an and animation are around as at away back beautiful by camera cartoon clip closer "
    "cute d day detailed down fast film from go goes going happy her high his in into is it its left little "
    "move moves movie moving of on one or over pretty quality quickly right scene shot showing shows side slow "
    "slowly some still style that the their then there this through time to toward towards under up very video "
    "view while with "
)
PLAIN_ZH = frozenset(
    "一个只头匹条辆艘架枚的地得着了在里上中下面旁边正是有和与它他她们这那很非常可爱漂亮美丽视频画面影片动画镜头小大慢快向左右往从到过去来"
)
LIMIT = 4  # things named in a notice


def unknown_words(prompt: str, subjects: tuple[Subject, ...] = SUBJECTS) -> list[str]:
    """The words of a prompt, English or Chinese, that no caption of the demo world uses, in order and once each."""
    english, chinese = _known(subjects)
    unknown: list[str] = []
    for word in re.findall(r"[a-z0-9][a-z0-9'-]*", prompt.lower()):
        if not word.isdigit() and not _is_known_english(word, english):
            unknown.append(word)
    for run in re.findall(r"[\u3400-\u9fff]+", prompt):
        unknown += _unknown_chinese(run, chinese)
    return list(dict.fromkeys(unknown))


def describe_gap(prompt: str, subjects: tuple[Subject, ...] = SUBJECTS) -> str | None:
    """A notice for a prompt outside the demo world, None for one inside: what is not known and the nearest things
    that are.

    subjects: the rows that the model was trained on, the whole table unless said.
    """
    unknown = unknown_words(prompt, subjects)
    chinese = bool(re.search(r"[\u3400-\u9fff]", prompt))
    if unknown:
        near = list(dict.fromkeys(name for word in unknown[:LIMIT] for name in _nearest(word, subjects)))
        listed = "、".join(unknown[:LIMIT]) if chinese else ", ".join(unknown[:LIMIT])
    elif not _names_subject(prompt, subjects):
        near, listed = [], ""
    else:
        return None
    near = (near or [row.name for row in subjects])[:LIMIT]
    if chinese:
        known = "、".join(_chinese_name(name) for name in near)
        return (
            f"演示模型不认识：{listed}。" if listed else "提示词里没有演示模型认识的主角。"
        ) + f"它认识的相近事物：{known}。"
    known = ", ".join(near)
    return (
        f"the demo model does not know: {listed}; "
        if listed
        else "the prompt names no subject that the demo model knows; "
    ) + f"nearest things it knows: {known}"


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
    return frozenset(singles | set(PLAIN_EN.split()) | {"grey"}), frozenset([*chinese, *words.WITHIN_ZH, "卡通风格"])


def _is_known_english(word: str, known: frozenset[str]) -> bool:
    """Whether the word, or its singular or plain verb form, is known."""
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("'s"), f"{word}s", f"{word}es"}
    forms |= {word.removesuffix("y") + "ies", re.sub(r"ies$", "y", word)}
    return bool(forms & known)


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


def _nearest(word: str, subjects: tuple[Subject, ...]) -> list[str]:
    """Up to two things of the world that come nearest to an unknown word: by meaning where the table knows it, else by
    spelling."""
    names = [*(row.name for row in subjects), *words.PLACES, *words.COLOURS]
    within = [alias for alias in words.ALIASES if alias in word and not alias.isascii()]
    for form in (word, word.removesuffix("s"), *within):
        if words.ALIASES.get(form) in names:
            return [words.ALIASES[form]]
    return difflib.get_close_matches(word, names, n=2, cutoff=0.75)


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
