"""`dglaunch gallery OUT` or `gallery OUT1 OUT2 ...`: a page to look through results, or to compare runs side by side. Needs no
torch."""

import getpass
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from dglaunch.addresses import is_address
from dglaunch.errors import EXIT_DONE, OutputError, UserError
from dglaunch.output.choices import Tally, read_choices, tally
from dglaunch.output.comparison import Comparison, names_of
from dglaunch.output.contact_sheet import write_contact_sheet
from dglaunch.output.far import far_of, opened_to_read
from dglaunch.output.gallery import MOST_COPIES, PAGE, lie_beside, render, write_page
from dglaunch.output.gallery_rows import folder_of
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.page_parts import write_pieces
from dglaunch.output.serving import Page, Server, StopServing
from dglaunch.output.shards import has_shards
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.storage.working import address_of
from dglaunch.system import are_loopback
from dglaunch.terminal import Terminal, progress

COMPARED = Path("compare.html")
MOST_SHOWN = 6
LOOPBACK = "127.0.0.1"


def gallery(
    folders: tuple[Path, ...],
    /,
    output: Path | None = None,
    thumbnails: int = 0,
    contact_sheet: Path | None = None,
    blind: bool = False,
    choices: tuple[Path, ...] = (),
    serve: bool = False,
    host: str = LOOPBACK,
    port: int = 0,
) -> int:
    """Write a page to look through a folder of results: search, filter, sort, full images, before and after, and the grids of
    a job with --grid. With several folders: a page that shows them side by side, with what differs between the runs.

    Args:
        folders: what --output_dir was; the run may still be going on.
        output: the page; default is gallery.html in the folder, of several folders compare.html here. Its pictures are found
            relative to it.
        thumbnails: put pictures of this many pixels into the page itself; 0 shows the folder's files instead.
        contact_sheet: write one image (.png, .jpg, .webp) with small pictures of the results in place of the page (with
            --output or --thumbnails both); of a job with --grid its grids with their axes.
        blind: compare without saying which image is of which run; the page's choices can be downloaded.
        choices: sum up such files: how often was each run's image taken for the best? No page is written.
        serve: show the page to who has its address, until Ctrl-C, and write nothing. Only for this machine, unless --host.
        host: with --serve, the address to listen at (0.0.0.0 is every address of this machine).
        port: with --serve, the port; 0 takes a free one.
    """
    _check(folders, thumbnails, blind, contact_sheet, choices)
    if any(is_address(str(folder)) for folder in folders):
        _refuse(
            {
                "output": output,
                "thumbnails": thumbnails,
                "contact_sheet": contact_sheet,
                "choices": choices,
                "serve": serve,
            },
            "a page of results in an object store is put beside them, and shows them from there",
        )
        return _put_page(folders)
    if choices:
        _refuse({"output": output, "thumbnails": thumbnails, "blind": blind, "serve": serve}, "--choices only sums up")
        return _sum_up(folders, choices)
    if serve:
        _refuse({"output": output, "contact_sheet": contact_sheet}, "--serve writes nothing")
        return _serve([folder.resolve() for folder in folders], thumbnails, blind, host, port)
    _refuse({"host": host != LOOPBACK, "port": port}, "without --serve nothing is served")
    if len(folders) > 1:
        return _compare(folders, output or COMPARED, thumbnails, blind)
    return _show(folders[0], output, thumbnails, contact_sheet)


def _check(
    folders: Sequence[Path], thumbnails: int, blind: bool, contact_sheet: Path | None, choices: Sequence[Path]
) -> None:
    if not 0 <= thumbnails <= 512:
        raise UserError(f"--thumbnails {thumbnails}: 0 (none) to 512 pixels; 96 to 160 are usual.")
    if len(folders) == 1 and (blind or choices):
        flag = "--blind" if blind else "--choices"
        raise UserError(f"{flag} is for several runs; name at least two folders: dglaunch gallery OUT1 OUT2 {flag}.")
    if len(folders) > 1 and contact_sheet is not None:
        raise UserError("--contact_sheet is for one folder; write one of each, or leave it out.")


def _refuse(given: dict[str, object], reason: str) -> None:
    """Refuse flags that would do nothing."""
    for name, value in given.items():
        if value:
            raise UserError(f"--{name} does nothing here: {reason}. Leave it out.")


def _show(folder: Path, output: Path | None, thumbnails: int, contact_sheet: Path | None) -> int:
    OutputFolder(folder).require_results()
    terminal = Terminal()
    rows = SortedLines(OutputFolder(folder))
    made = len(rows) - rows.num_failed
    if contact_sheet is None or output is not None or thumbnails:
        page = _write_page(folder, output, thumbnails, rows)
        terminal.print(f"{made:,} images and {rows.num_failed:,} failures are in {page}")
        if lie_beside(folder, len(rows)):
            terminal.print(f"The rows lie in {folder_of(page)}: the page needs it beside itself.")
        if not thumbnails and has_shards(folder):
            terminal.print(
                f"The images are in shards, so the page has small copies of them (of at most {MOST_COPIES:,})"
                + ("." if address_of(folder) else "; --serve shows them whole.")
            )
    if contact_sheet is not None:
        shown = write_contact_sheet(folder, contact_sheet, rows)
        rest = made - shown
        terminal.print(f"{shown:,} images are on {contact_sheet}" + (f"; {rest:,} more are not" if rest else ""))
    return EXIT_DONE


def _write_page(folder: Path, output: Path | None, thumbnails: int, rows: SortedLines) -> Path:
    """The page; of a large job a line says how far its rows are, on which all cores work."""
    if not lie_beside(folder, len(rows)):
        return write_page(folder, output, thumbnails, rows)
    with progress("rows written", len(rows)) as advance:
        return write_page(folder, output, thumbnails, rows, os.cpu_count() or 1, advance)


def _put_page(folders: Sequence[Path]) -> int:
    """The page of results in an object store."""
    if len(folders) > 1:
        raise UserError("Results in an object store are shown alone; copy the folders here to compare them.")
    folder = opened_to_read(folders[0])
    ended = _show(folder, None, 0, None)
    far = far_of(folder)
    assert far is not None, "it is in an object store"
    try:
        far.store.put_file(PAGE, folder / PAGE)
    except OSError as error:
        raise OutputError(f"{folder / PAGE} cannot be put: {error.strerror or error}.") from None
    return ended


def _compare(folders: Sequence[Path], output: Path, thumbnails: int, blind: bool) -> int:
    terminal = Terminal()
    comparison = Comparison.of(folders, thumbnails, blind)
    with progress("differences measured", comparison.num_rows) as advance:
        write_pieces(output, comparison.render(output.parent, advance), "comparison")
    terminal.print(f"{comparison.num_in_all:,} images of {len(folders)} runs stand side by side in {output}")
    for heading in [] if blind else comparison.headings[:MOST_SHOWN]:
        terminal.print(f"  {heading}")
    if not blind and len(comparison.headings) > MOST_SHOWN:
        terminal.print(f"  and {len(comparison.headings) - MOST_SHOWN} more: see the page")
    if blind:
        names = " ".join(map(str, folders))
        terminal.print(f"When you have chosen: dglaunch gallery {names} --choices choices.json")
    return EXIT_DONE


def _sum_up(folders: Sequence[Path], files: Sequence[Path]) -> int:
    found = tally(folders, [choice for path in files for choice in read_choices(path)])
    terminal = Terminal()
    if found.num_left_out:
        terminal.print(
            f"{found.num_left_out:,} choices are left out: they are between other images than these folders hold."
        )
    if not found.num_choices:
        raise UserError("None of the choices are between images of these folders. Name the folders of the blind page.")
    terminal.print(_table(folders, found))
    terminal.print(
        f"{found.num_choices:,} choices in {len(found.rows):,} rows, {found.ties:,} of them for none"
        + _likelihood(found)
    )
    return EXIT_DONE


def _table(folders: Sequence[Path], found: Tally) -> Table:
    table = Table("run", "best", "share", "true share, 95 %")
    for number, name in enumerate(names_of([folder.resolve() for folder in folders])):
        low, high = found.interval(number)
        share = found.wins[number] / found.num_choices
        table.add_row(name, f"{found.wins[number]:,}", f"{share:.0%}", f"{low:.0%} to {high:.0%}")
    return table


def _likelihood(found: Tally) -> str:
    if len(found.wins) != 2 or not sum(found.wins):
        return "."
    return f". If both were equally good, chance alone would give a result as clear as this in {found.chance:.1%} of trials."


# -- over HTTP ----------------------------------------------------------------------------------------------------


def _serve(folders: Sequence[Path], thumbnails: int, blind: bool, host: str, port: int) -> int:
    """Show the page until Ctrl-C, or until a folder is not there any more."""
    terminal = Terminal()
    for folder in folders:
        OutputFolder(folder).require_results()
    page = Page(folders, lambda: _pieces(folders, thumbnails, blind))
    with _listening(page, host, port, terminal) as server:
        os.close(page.file())  # what is wrong with it is said now
        try:
            _tell(server, terminal)
            if any(OutputFolder(folder).input_table() for folder in folders):
                terminal.print(
                    "Input images are shown where --save_inputs has copied them; those of the table are not served."
                )
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.print("Stopped.")
        except StopServing as gone:
            raise UserError(
                f"{gone} was moved or deleted while it was served, so there is nothing left to show. Start dglaunch gallery "
                "--serve again with the place where it is now."
            ) from None
    return EXIT_DONE


def _pieces(folders: Sequence[Path], thumbnails: int, blind: bool) -> Iterator[str]:
    """The page; its pictures lie beside it, or, of several folders, in folders that are called by number."""
    if len(folders) == 1:
        yield from render(folders[0], folders[0], thumbnails, SortedLines(OutputFolder(folders[0])), only_inside=True)
        return
    comparison = Comparison.of(folders, thumbnails, blind)
    with progress("differences measured", comparison.num_rows) as advance:
        yield from comparison.render(
            folders[0], advance, {folder: f"{number}/" for number, folder in enumerate(folders)}
        )


def _listening(page: Page, host: str, port: int, terminal: Terminal) -> Server:
    """A server at an address of this machine.

    Raises:
        UserError: there is no such address, or the port is not to be had.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: a number from 0 (a free one) to 65535 is needed.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return Server(page, (str(address[0]), port), family, terminal.print)
    except OSError as error:
        raise UserError(
            f"Nothing can be served at --host {host} --port {port}: {error.strerror or error}. Leave both out for a free port "
            "of this machine's own address, 127.0.0.1."
        ) from None


def _tell(server: Server, terminal: Terminal) -> None:
    """Say where the page is, and how to see it from another machine."""
    host, port = server.server_name, server.server_port
    named = f"[{host}]" if ":" in host else host
    if are_loopback([host]):
        terminal.print(f"The page is at http://{named}:{port}/{server.token}/")
        terminal.print(f"From another machine, first: ssh -N -L {port}:{named}:{port} {_user()}@{platform.node()}")
    else:
        reached = platform.node() if host in ("0.0.0.0", "::") else named
        terminal.print(f"The page is at http://{reached}:{port}/{server.token}/")
        terminal.print(
            "Whoever reaches this machine and has the address can look at it; nothing is encrypted on the way."
        )
    terminal.print("Ctrl-C ends it.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "USER"
