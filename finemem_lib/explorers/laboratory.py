"""The credit laboratory: every explorer of a trajectory and of a training run in one widget.

The query of the page's URL holds the choices of the reader in words, so that a link shows the same
page.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from finemem_lib.credit.replay import Replayer
from finemem_lib.explorers.evidence import evidence_explorer, memory_player
from finemem_lib.explorers.explorer import Control, Explorer, Views
from finemem_lib.explorers.live import Live
from finemem_lib.explorers.training import compare_rollouts, group_explorer
from finemem_lib.explorers.what_if import what_if_explorer
from finemem_lib.figures.style import one_line
from finemem_lib.managers.model import ModelManager
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import evidence_contribution
from finemem_lib.trajectory import Trajectory
from finemem_lib.util.console import UsageError

Say = Callable[[str], None]
"""Shows a message about the current work."""

Group = Sequence[Trajectory]
"""Rollouts of one instance."""

MAX_FIELDS = 40
"""Maximum fields of an address."""


@dataclass(frozen=True, slots=True)
class Material:
    """The contents of a run or an example.

    Attributes:
        groups: the rollouts of one instance each, by a name that may be untrusted.
        agent: returns the reasoning agent that answered, where that can be asked again.
        manager: returns the language model that wrote the completions.
        training: returns the explorer of the training run.
    """

    groups: Mapping[str, Group]
    agent: Callable[[Group], ReasoningAgent] | None = None
    manager: Callable[[Say], ModelManager] | None = None
    training: Callable[[Say], Explorer] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A run or an example that the laboratory offers.

    Attributes:
        name: its name in addresses.
        label: its name in the menu.
        load: reads or plays it, when it is first chosen.
    """

    name: str
    label: str
    load: Callable[[Say], Material]


@dataclass(frozen=True, slots=True)
class Page:
    """A tab of the laboratory.

    Attributes:
        label: the text of the tab.
        make: returns its explorer, for the material, a group and a rollout of it.
        reads: which of the controls "stream" and "rollout" choose what it shows.
        of_group: whether one explorer shows every rollout of a group.
    """

    label: str
    make: Callable[[Material, Group, int, Say], Explorer]
    reads: tuple[str, ...] = ("stream", "rollout")
    of_group: bool = False


def _evidence(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    return evidence_explorer(group[rollout])


def _what_if(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    say("Looking for the step that changes an answer")
    agent = material.agent(group) if material.agent else None
    try:
        if agent:
            Replayer(group[0], agent)
    except ValueError:  # another agent answered: the rules that read again are not offered
        agent = None
    return what_if_explorer(group, agent=agent)


def _compare(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    return compare_rollouts([group])


def _memory(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    return memory_player(group[rollout])


def _completions(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    if not material.manager or any(s.completion_ids is None for one in group for s in one.steps):
        raise ValueError(
            "No language model wrote these completions, so they have no tokens to show. Choose an "
            "instance that a trained manager played, or the example of a tiny language model."
        )
    agent = material.agent(group) if material.agent else None
    return group_explorer(group, material.manager(say), agent=agent)


def _training(material: Material, group: Group, rollout: int, say: Say) -> Explorer:
    if not material.training:
        raise ValueError(
            "No manager was trained here. Choose a run in which notebook 04 has run; "
            "`finemem run --notebooks 04` makes one."
        )
    return material.training(say)


PAGES = {
    "evidence": Page("Evidence", _evidence),
    "what-if": Page("What-if", _what_if, of_group=True),
    "compare": Page("Rollout compare", _compare, ("stream",), of_group=True),
    "memory": Page("Memory player", _memory),
    "completions": Page("Completions", _completions, ("stream",), of_group=True),
    "training": Page("Training", _training, (), of_group=True),
}
"""The tabs by their names in addresses."""


class Laboratory(Live):
    """The widget of the laboratory: a tab for every page, the controls, and the figures.

    Nothing is read, played or drawn before its tab is opened. The reader's choices are kept for
    other tabs with the same control. These choices, and those of an address, are "wishes"; a
    sentence states which wishes of an address cannot be fulfilled.

    Attributes:
        sources: the runs and examples by name.
        page: name of the open page.
        notices: sentences about what cannot be shown.
        projector: whether type is large.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Make the widget; it opens when the page sends its address.

        Args:
            sources: the runs and examples, that of the start first.

        Raises:
            ValueError: there is no source.
        """
        self.sources = {source.name: source for source in sources}
        self.page = next(iter(PAGES))
        self.notices: list[str] = []
        self.projector = False
        self._wishes: dict[tuple[str, str], str] = {}  # words by scope and name of the control
        self._unanswered: set[tuple[str, str]] = set()  # wishes of an address
        self._opened: dict[str, str] = {}  # the view of every page
        self._material = functools.lru_cache(maxsize=2)(self._load)
        self._inner = functools.lru_cache(maxsize=24)(self._make)
        super().__init__(Explorer(TITLE, (self._source_control(),), _nothing))

    def open_address(self, query: str) -> None:
        """Show what an address names.

        Args:
            query: the query of a URL, untrusted.
        """
        self.notices, self._wishes, self._unanswered = [], {}, set()
        try:
            query = query.removeprefix("?")
            fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError:
            fields = {}
            self.notices.append(
                f"The address has more than {MAX_FIELDS} fields, so none was read; shorten it."
            )
        fields.pop("token", None)  # of the server
        self.projector = fields.pop("projector", "") == "1"
        page = fields.pop("tab", self.page)
        if page in PAGES:
            self.page = page
        else:
            self.notices.append(
                f"The address asks for the tab “{one_line(page, 60)}”, expected one of "
                f"{', '.join(PAGES)}; “{self.page}” is shown."
            )
        self._opened[self.page] = fields.pop("view", "")
        for name, word in fields.items():
            self._wishes[self._key(name)] = word
            self._unanswered.add(self._key(name))
        self._guarded(self._open)

    def open_page(self, page: str) -> None:
        """Open a tab.

        Args:
            page: a name in `PAGES`.
        """
        self.notices = []
        self._opened[self.page], self.page = self.view, page
        self._guarded(self._open)

    @property
    def address(self) -> str:
        """The query that names what is shown: the source, the tab, and what a reader chose."""
        fields = {"source": self.state["source"], "tab": self.page}
        for name, shown in self.controls.items():
            if self._key(name) in self._wishes:
                fields[name] = _word(*shown.options[shown.place])
        if self.view != next(iter(self.views), ""):
            fields["view"] = self.view
        if self.projector:
            fields["projector"] = "1"
        return f"?{urlencode(fields, quote_via=quote, safe=':,')}"

    def _received(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"address": query}:
                self._answers += 1
                self.open_address(query)
            case {"page": page}:
                self._answers += 1
                self.open_page(page)
            case {"projector": projector}:
                self._answers += 1
                self.projector = projector
                self._publish()
            case {"control": name} if name not in self.controls:  # of a page that was left since
                self._answers += 1
                self._publish()
            case _:
                super()._received(message)

    def _change(self, name: str, value: Any) -> None:
        self.notices = []
        [text] = [text for text, one in self.controls[name].options if one == value]
        self._wishes[self._key(name)] = _word(text, value)
        self._opened[self.page] = self.view
        self._open()

    def _key(self, name: str) -> tuple[str, str]:
        """Return the key of a wish; pages that show the same trajectories share their wishes."""
        shared = name == "source" or PAGES[self.page].reads
        return "" if shared else self.page, name

    def _open(self) -> None:
        """Set the controls by the wishes, and draw the page."""
        page, own = PAGES[self.page], [self._source_control()]
        inner = Explorer(TITLE, (), _nothing)
        try:
            source = self._choose(own)["source"]
            if page.reads:
                own += self._group_controls(source)
            chosen = self._choose(own)
            rollout = 0 if page.of_group else chosen["rollout"]
            inner = self._inner(self.page, source, chosen.get("stream", 0), rollout)
        except Exception as error:  # whatever a file of a run makes of itself, the rest goes on
            self.notices.append(_sentence(error))
        own = [control for control in own if control.name in ("source", *page.reads)]
        named = {control.name for control in own}
        rest = [control for control in inner.controls if control.name not in named]
        self.explorer = Explorer(TITLE, (*own, *rest), inner.figures)
        self.state = self._choose(self.explorer.controls, answer=True)
        self.view = self._opened.get(self.page, "")
        self._look()
        self._draw()

    def _choose(self, controls: Sequence[Control], answer: bool = False) -> dict[str, Any]:
        """Return the value of every control by the wishes.

        Args:
            controls: the controls.
            answer: whether to state which wishes of an address cannot be fulfilled.
        """
        explorer = Explorer(TITLE, tuple(controls), _nothing)
        wanted: dict[str, Any] = {}
        for control in controls:
            key = self._key(control.name)
            if key not in self._wishes:
                continue
            state = explorer.settle(wanted)
            options = control.choices(state)
            found = [value for text, value in options if _word(text, value) == self._wishes[key]]
            wanted[control.name] = found[0] if found else state[control.name]
            if not found and answer and key in self._unanswered:
                [shown] = [text for text, value in options if value == state[control.name]]
                self.notices.append(
                    f"The address asks for “{one_line(self._wishes[key], 60)}” as {control.label}, "
                    f"which is not offered here; “{shown}” is shown. Choose in the menu, or "
                    "correct the address."
                )
            if answer:
                self._unanswered.discard(key)
        return explorer.settle(wanted)

    def _source_control(self) -> Control:
        options = [(source.label, source.name) for source in self.sources.values()]
        return Control("source", "run or example", options)

    def _group_controls(self, source: str) -> list[Control]:
        """Return the controls of the instance and of the rollout."""
        groups = self._material(source).groups
        names = [(name, place) for place, name in enumerate(groups)]
        stream = Control("stream", "instance", names)
        place = self._choose([self._source_control(), stream])["stream"]
        group = [*groups.values()][place]
        rollouts = [(f"{n + 1}: {one.manager}", n) for n, one in enumerate(group)]
        return [stream, Control("rollout", "rollout", rollouts, _most_evidence(group))]

    def _load(self, source: str) -> Material:
        return self.sources[source].load(self._say)

    def _make(self, page: str, source: str, stream: int, rollout: int) -> Explorer:
        material = self._material(source)
        group = [*material.groups.values()][stream] if PAGES[page].reads else ()
        return PAGES[page].make(material, group, rollout, self._say)

    def _say(self, what: str) -> None:
        self.widget.status = what

    def _around(self) -> dict[str, Any]:
        if self._trace:
            print(self._trace, file=sys.__stderr__)
        shown = [
            self._described(control)
            for control in self.explorer.controls
            if control.name in ALWAYS_SHOWN or len(self.controls[control.name].options) > 1
        ]
        return {
            "controls": shown,
            "pages": [[name, page.label] for name, page in PAGES.items()],
            "page": self.page,
            "notices": self.notices,
            "projector": self.projector,
            "address": self.address,
            "trace": "",  # for the terminal, not for an audience
        }


TITLE = "Credit laboratory"

ALWAYS_SHOWN = ("source", "stream", "rollout")
"""Controls that are shown even if they have one option."""


def _nothing(**_: Any) -> Views:
    return {}


def _word(text: str, value: Any) -> str:
    """Return the name of an option in an address: its value if a text, else its text up to ":".

    >>> _word("stream 2: Mia and Ben", 1), _word("Fine-Mem", "Fine-Mem")
    ('stream 2', 'Fine-Mem')
    """
    return value if isinstance(value, str) else " ".join(text.partition(":")[0].split())


def _sentence(error: Exception) -> str:
    """Return an error as a sentence; the trace of an unexpected one is printed in the terminal."""
    if isinstance(error, ValueError | OSError | UsageError):
        return str(error)
    traceback.print_exception(error, file=sys.__stderr__)
    return f"This cannot be shown: {type(error).__name__}: {error}"


def _most_evidence(group: Group) -> int:
    """Return the position of the rollout with the step that earned most evidence."""
    return max(
        range(len(group)),
        key=lambda place: max(share or 0 for share in evidence_contribution(group[place])),
    )
