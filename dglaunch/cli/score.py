"""`dglaunch score OUT --with clip`: a column of scores for the images of a folder, by a model or by a function of yours.

It is sharded like a run (torchrun, or --num_gpus), and the same command goes on after a stop. The scores lie beside the ledger
(output/scores.py); --best_of N makes a view of the best ones.
"""

import statistics
import threading
from collections.abc import Mapping

from dglaunch.backends.scoring.base import Wanted, asked, check_model
from dglaunch.cli.agent import run_ranks
from dglaunch.cli.flags import read_own, without
from dglaunch.cli.jobs import starts_ranks
from dglaunch.cli.own_flags import ScoreFlags
from dglaunch.config import BackendConfig, ParallelConfig, RunConfig
from dglaunch.distributed.topology import from_environment
from dglaunch.environment import another_speaks, check_variables
from dglaunch.errors import EXIT_DONE, EXIT_DRAINED, EXIT_ITEMS_FAILED, UserError
from dglaunch.output import best_of, scores
from dglaunch.output.far import opened_to_read
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.scores import Scores
from dglaunch.output.sorted_lines import SortedLines
from dglaunch.run.scoring import Request, Scoring, ScoringResult
from dglaunch.terminal import Terminal


def score(words: list[str], environ: Mapping[str, str]) -> int:
    """Score the images of a folder; the exit code is the same on every rank.

    Raises:
        DglaunchError: a mistake of the user's, or it broke off.
    """
    flags = read_own(ScoreFlags, words[1:], "score")
    check_variables(environ)
    if flags.name is not None and not scores.NAME.fullmatch(flags.name):
        raise UserError(f"--name {flags.name!r}: letters, digits and _ are possible, up to 64 of them.")
    folder = OutputFolder(opened_to_read(flags.folder))
    folder.require_results()
    if flags.scorer is None:
        return _only_best(folder, flags)
    wanted = asked(flags.scorer, flags.head, flags.allow_pickle)
    name = flags.name or wanted.default_name
    check_model(wanted)
    _refuse_column(folder, name)
    config = RunConfig(backend=BackendConfig(device=flags.device), output_dir=flags.folder, num_gpus=flags.num_gpus)
    if flags.num_gpus is not None and starts_ranks(config, flags.num_gpus, environ):
        return run_ranks(flags.num_gpus, without(words, "num_gpus"))
    result = _run(folder, name, wanted, flags, config, environ)
    speaks = not another_speaks(environ)
    if speaks:
        _report(folder, name, result)
    if result.counts.drained:
        return EXIT_DRAINED
    if flags.best_of is not None and speaks:
        _write_best(folder, name, flags.best_of)
    return EXIT_ITEMS_FAILED if result.counts.failed else EXIT_DONE


def _run(
    folder: OutputFolder, name: str, wanted: Wanted, flags: ScoreFlags, config: RunConfig, environ: Mapping[str, str]
) -> ScoringResult:
    from dglaunch.backends.diffusers.profile import device_of

    topology = from_environment(config, ParallelConfig(), environ)
    request = Request(
        folder=folder, name=name, wanted=wanted, batch_size=flags.batch_size, overwrite=flags.overwrite,
        cache=config.backend.cache, stall_timeout=config.stall_timeout,
    )  # fmt: skip
    return Scoring(request, topology, device_of(config, topology, {}), flags.torch_dtype).run(threading.Event())


def _refuse_column(folder: OutputFolder, name: str) -> None:
    """A score is shown as a column of the ledger: not one that the job's table has.

    Raises:
        UserError: it has.
    """
    column = scores.column(name)
    if any(column in record for record in folder.records()):
        raise UserError(
            f"The images of {folder.path} have a column {column} of their own, from the job's table. Give the scores another "
            f"name: --name {name}_2."
        )


def _only_best(folder: OutputFolder, flags: ScoreFlags) -> int:
    """The view of the best alone, of scores that there are."""
    there = scores.present(folder)
    if flags.best_of is None or flags.name is None:
        raise UserError(
            "Name what scores: --with clip (dglaunch score --help lists more). Without it, --name NAME --best_of N makes a view of "
            "scores that there are."
        )
    if flags.name not in there:
        known = f"It has {', '.join(there)}." if there else "It has none; give --with."
        raise UserError(f"--name {flags.name}: {folder.path} has no scores of this name. {known}")
    _write_best(folder, flags.name, flags.best_of)
    return EXIT_DONE


def _write_best(folder: OutputFolder, name: str, most: int) -> None:
    lines = SortedLines(folder).only(failed=False)
    with scores.held(folder, name):
        view, num_images, num_prompts = best_of.write(folder, name, Scores.read(folder, name), most, lines)
    Terminal().print(f"the best {num_images:,} images of {num_prompts:,} prompts are in {view}")


def _report(folder: OutputFolder, name: str, result: ScoringResult) -> None:
    counts, values, terminal = result.counts, result.values, Terminal()
    before = f" ({counts.before:,} were before)" if counts.before else ""
    terminal.print(f"{counts.scored:,} images scored{before}; {folder.path / scores.FOLDER / name}.jsonl")
    if values:
        low, middle, high = min(values), statistics.median(values), max(values)
        terminal.print(f"{scores.column(name)}: {low:.4g} to {high:.4g}, half of them below {middle:.4g}")
    if counts.cut:
        terminal.print(f"{counts.cut:,} prompts are longer than the model reads; only their beginnings were compared")
    for why in counts.why:
        terminal.print(why)
    if counts.failed:
        terminal.print(f"{counts.failed:,} images have no score; the same command tries them again")
    if counts.drained:
        terminal.print("Stopped. The same command goes on.")
