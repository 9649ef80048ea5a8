"""The terminal of `top`: draws the model's rows again after news, and hears keys.

Only this module needs textual, which the extra `tui` brings. It decides nothing: what is shown is
`rows`, what is known is `model`, what keys ask for is `actions`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Input, Log, Static, TabbedContent, TabPane

from controlplane.cli.session import Session
from controlplane.cli.top import actions, rows
from controlplane.cli.top.feed import HISTORIES_MAX, Feed
from controlplane.cli.top.model import Model, News, Said
from controlplane.cli.watch import has_ended
from stairlib.model.errors import StairwellError
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement

_TABLES: dict[str, Callable[[Model], rows.Table]] = {
    "disks": rows.disks_table,
    "replacements": rows.replacements_table,
    "machines": rows.machines_table,
    "fleet": rows.downstairs_table,
}


class TopApp(App[None]):
    """`interval` is seconds between two rounds."""

    TITLE = "stairwell top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #head { height: 1; background: $primary; color: $text; text-style: bold; }
    #head.away { background: $error; }
    TabbedContent { height: 1fr; min-height: 7; }
    TabPane { padding: 0; }
    DataTable { height: 1fr; }
    #detail { height: auto; max-height: 9; border-top: solid $primary; }
    #detail Static { height: auto; }
    #rate { display: none; height: 3; }
    #rate.asked { display: block; }
    #log { height: 4; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "pause", "Pause"),
        Binding("r", "resume", "Resume"),
        Binding("l", "limit", "Limit"),
        Binding("1", "tab('disks')", "Disks"),
        Binding("2", "tab('replacements')", "Replacements"),
        Binding("3", "tab('machines')", "Machines"),
        Binding("4", "tab('fleet')", "Fleet"),
        Binding("escape", "leave", "Back", show=False),
    ]

    def __init__(self, session: Session, model: Model, interval: float) -> None:
        super().__init__()
        self.model = model
        self._session = session
        self._interval = interval
        self._feed = Feed(session, model, self.take, self._in_sight)
        self._last_line: object = None
        # The disk whose limit is being asked for.
        self._limited = ""

    def compose(self) -> ComposeResult:
        """A line of totals, the tables, one disk, the log."""
        yield Static(id="head", markup=False)
        with TabbedContent(initial="disks"):
            for name, table in _TABLES.items():
                with TabPane(table(Model()).title, id=name):
                    yield DataTable(id=f"{name}-table", cursor_type="row")
                    yield Static(id=f"{name}-empty", markup=False)
        with VerticalScroll(id="detail", can_focus=False):
            yield Static(id="disk", markup=False)
        yield Input(id="rate")
        yield Log(id="log")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begins to ask."""
        for name, make in _TABLES.items():
            table = make(Model())
            widget = self._table(name)
            for column, width in zip(table.columns, table.widths, strict=True):
                widget.add_column(column, key=column, width=min(width, len(column) + 2))
        self.query_one("#log", Log).can_focus = False
        self._table("disks").focus()
        self.draw()
        self.run_worker(self._feed.run(self._interval), name="feed", exit_on_error=True)

    # ----- news and drawing

    def take(self, news: News) -> None:
        """News from the feed, and from keys."""
        self.model.take(news)
        self.draw()

    def draw(self) -> None:
        """Shows the model as it is; nothing any more once the screen is being taken down, which it
        is widget by widget while news still come."""
        with contextlib.suppress(NoMatches):
            self._draw()

    def _draw(self) -> None:
        head = self.query_one("#head", Static)
        head.update(rows.header(self.model, self._session.settings.address))
        head.set_class(bool(self.model.away), "away")
        for name, make in _TABLES.items():
            self._fill(name, make(self.model))
        self.query_one("#disk", Static).update("\n".join(rows.detail(self.model, self.selected)))
        self._write_log()

    def _fill(self, name: str, table: rows.Table) -> None:
        """Changes what differs, so that the cursor and the place scrolled to stay."""
        widget = self._table(name)
        widget.display = bool(table.rows)
        empty = self.query_one(f"#{name}-empty", Static)
        empty.update(table.empty)
        empty.display = not table.rows
        wanted = [key for key, _texts in table.rows]
        have = [str(key.value) for key in widget.rows]
        if have != wanted:
            at = widget.cursor_row
            widget.clear()
            for key, texts in table.rows:
                widget.add_row(*self._cells(table, texts), key=key)
            if wanted:
                widget.move_cursor(row=min(max(at, 0), len(wanted) - 1))
        else:
            for key, texts in table.rows:
                for column, cell in zip(table.columns, self._cells(table, texts), strict=True):
                    if widget.get_cell(key, column) != cell:
                        widget.update_cell(key, column, cell)
        self._fit(widget, table)

    @staticmethod
    def _fit(widget: DataTable[Text], table: rows.Table) -> None:
        """Columns as wide as their texts, up to their widths."""
        for number, column in enumerate(widget.ordered_columns):
            longest = max(len(texts[number]) for texts in (table.columns, *_texts(table)))
            width = min(table.widths[number], longest)
            if column.width != width:
                column.width = width
                widget.refresh(layout=True)

    @staticmethod
    def _cells(table: rows.Table, texts: tuple[str, ...]) -> list[Text]:
        # Text, since names and addresses may look like markup.
        return [
            Text(rows.cut(text, width)) for text, width in zip(texts, table.widths, strict=True)
        ]

    def _write_log(self) -> None:
        lines = list(self.model.log)
        new = lines
        for at in range(len(lines) - 1, -1, -1):
            if lines[at] is self._last_line:
                new = lines[at + 1 :]
                break
        if new:
            self._last_line = new[-1]
            texts = rows.log_texts(self.model)[-len(new) :]
            self.query_one("#log", Log).write_lines(texts)

    # ----- where the user is

    def _table(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}-table", DataTable)

    @property
    def selected(self) -> str:
        """The disk under the cursor: of the table of disks, or of the replacement there."""
        if self.query_one(TabbedContent).active == "replacements":
            one = self.model.replacements.get(self._cursor("replacements"))
            if one is not None:
                return one.disk
        return self._cursor("disks")

    def _cursor(self, name: str) -> str:
        widget = self._table(name)
        keys = list(widget.rows)
        return str(keys[widget.cursor_row].value) if 0 <= widget.cursor_row < len(keys) else ""

    def _in_sight(self) -> list[str]:
        """The selected disk, then those whose rows can be seen; none any more once the screen is
        being taken down."""
        with contextlib.suppress(NoMatches):
            return self._seen()
        return []

    def _seen(self) -> list[str]:
        names = [disk.name for disk in self.model.inventory.disks]
        top = int(self._table("disks").scroll_y)
        return list(dict.fromkeys([self.selected or next(iter(names), ""), *names[top:]]))[
            :HISTORIES_MAX
        ]

    def on_data_table_row_highlighted(self) -> None:
        """Another row: another disk below."""
        self.query_one("#disk", Static).update("\n".join(rows.detail(self.model, self.selected)))

    # ----- keys

    def action_tab(self, name: str) -> None:
        """Shows another table."""
        self.query_one(TabbedContent).active = name
        self._table(name).focus()

    def action_pause(self) -> None:
        """Of the selected disk's replacement."""
        self._with_replacement(actions.pause)

    def action_resume(self) -> None:
        """The same."""
        self._with_replacement(actions.resume)

    def _with_replacement(self, act: Callable[[Session, Replacement], Awaitable[str]]) -> None:
        one = self.model.replacement_of(self.selected)
        if one is None or has_ended(one):
            self.take(Said(time.time(), f"no replacement runs on {self.selected or 'any disk'}"))
        else:
            self._ask(act(self._session, one))

    def action_limit(self) -> None:
        """Asks for a rate."""
        if not self.selected:
            self.take(Said(time.time(), "no disk to limit the repairs of"))
            return
        self._limited = self.selected
        entry = self.query_one("#rate", Input)
        entry.placeholder = f"repairs of {self._limited} a second, as 50M; 0: no limit"
        entry.value = ""
        entry.add_class("asked")
        entry.focus()

    def action_leave(self) -> None:
        """Asks no more."""
        self.query_one("#rate", Input).remove_class("asked")
        self._table(self.query_one(TabbedContent).active).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The rate was given."""
        self.action_leave()
        if event.value.strip():
            self._ask(actions.limit(self._session, self._limited, event.value))

    def _ask(self, asked: Awaitable[str]) -> None:
        """Has it done beside everything else, and tells what came of it."""

        async def answer() -> None:
            try:
                text = await asked
            except StairwellError as error:
                text = f"refused: {error.message}"
            except ValueError as error:
                text = str(error)
            self.take(Said(time.time(), text))

        self.run_worker(answer(), group="asked")


def _texts(table: rows.Table) -> list[tuple[str, ...]]:
    return [texts for _key, texts in table.rows]
