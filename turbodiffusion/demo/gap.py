"""What a prompt asks for that the demo world does not have, and the nearest things that it knows: one line, in the
prompt's language."""

import difflib
import re
from functools import cache

from turbodiffusion.demo import words
from turbodiffusion.demo.subjects import BY_NAME, SUBJECTS

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


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt, English or Chinese, that no caption of the demo world uses, in order and once each."""
    english, chinese = _known()
    unknown: list[str] = []
    for word in re.findall(r"[a-z0-9][a-z0-9'-]*", prompt.lower()):
        if not _is_known_english(word, english):
            unknown.append(word)
    for run in re.findall(r"[\u3400-\u9fff]+", prompt):
        unknown += _unknown_chinese(run, chinese)
    return list(dict.fromkeys(unknown))


def describe_gap(prompt: str) -> str | None:
    """A notice for a prompt outside the demo world, None for one inside: what is not known and the nearest things
    that are."""
    unknown = unknown_words(prompt)
    chinese = bool(re.search(r"[\u3400-\u9fff]", prompt))
    if unknown:
        near = list(dict.fromkeys(name for word in unknown[:LIMIT] for name in _nearest(word)))[:LIMIT]
        listed = "、".join(unknown[:LIMIT]) if chinese else ", ".join(unknown[:LIMIT])
    elif not _names_subject(prompt):
        near, listed = [row.name for row in SUBJECTS[:LIMIT]], ""
    else:
        return None
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
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Every English word and every Chinese phrase of the captions, the aliases' targets excepted."""
    english: list[str] = [row.name for row in SUBJECTS]
    chinese: list[str] = [row.chinese for row in SUBJECTS]
    for verbs, zh in words.VERBS.values():
        english += [form for pair in verbs for form in pair]
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
    singles = {word for phrase in english for word in phrase.lower().split()}
    return frozenset(singles | set(PLAIN_EN.split())), frozenset([*chinese, "卡通风格"])


def _is_known_english(word: str, known: frozenset[str]) -> bool:
    """Whether the word, or its singular or plain verb form, is known."""
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("'s"), f"{word}s", f"{word}es"}
    forms |= {word.removesuffix("y") + "ies", re.sub(r"ies$", "y", word)}
    return bool(forms & known)


def _unknown_chinese(run: str, known: frozenset[str]) -> list[str]:
    """The stretches of a run of Chinese characters that are neither known phrases (longest first) nor plain
    characters."""
    unknown, stretch, at = [], "", 0
    while at < len(run):
        phrase = next((run[at : at + n] for n in range(min(8, len(run) - at), 0, -1) if run[at : at + n] in known), "")
        plain = phrase or run[at] in PLAIN_ZH
        if plain and stretch:
            unknown.append(stretch)
            stretch = ""
        stretch = stretch if plain else stretch + run[at]
        at += len(phrase) or 1
    return unknown + ([stretch] if stretch else [])


def _nearest(word: str) -> list[str]:
    """Up to two things of the world that come nearest to an unknown word: by meaning where the table knows it, else
    by spelling."""
    for form in (word, word.removesuffix("s")):
        if form in words.ALIASES:
            return [words.ALIASES[form]]
    held = [
        name
        for alias, name in words.ALIASES.items()
        if len(alias) < len(word) and not alias.isascii() and alias in word
    ]
    names = [*BY_NAME, *words.PLACES, *words.COLOURS]
    return held[:1] or difflib.get_close_matches(word, names, n=2, cutoff=0.6) or [row.name for row in SUBJECTS[:2]]


def _names_subject(prompt: str) -> bool:
    low = prompt.lower()
    return any(
        re.search(rf"(?<![a-z]){re.escape(row.name)}(s|es)?(?![a-z])", low) or row.chinese in prompt for row in SUBJECTS
    )


def _chinese_name(name: str) -> str:
    if name in BY_NAME:
        return BY_NAME[name].chinese
    return words.COLOURS[name] if name in words.COLOURS else words.PLACES[name][4]
