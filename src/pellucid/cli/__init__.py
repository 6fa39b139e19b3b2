"""The command line: one file per verb, imported when it is called.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, or stopped after a
checkpoint; 1 failed; 2 wrong input, told in one line.
"""

import importlib
import keyword
import os
import sys

VERBS = {
    "train": "train a language model from a recipe",
    "resume": "continue a run, bit for bit where it stopped",
    "generate": "write text with a run, with units ablated or scaled if asked",
    "sizes": "parameters, FLOPs and bytes of every preset and architecture",
    "runs": "list the runs in a folder",
    "harvest": "run a model over text once and keep the activations of some sites",
    "fit": "fit dictionaries to harvested activations or to a model as it runs",
    "worlds": "fit dictionaries to worlds with known features and score what they recover",
    "export": "write dictionaries in another tool's format",
    "import": "read dictionaries of another tool into a run folder",
    "demo": "train a small model of readable units and its dense twin, and write a report",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    # Huge pages spare the CPU a page fault per 4 kB of every fresh activation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    args = sys.argv[1:] if argv is None else argv
    try:
        code = _answer(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of stdout has gone, as in `pellucid runs | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def module_of(verb: str) -> str:
    """The name of a verb's module, which may be no keyword."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb


def _answer(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] == "--version":
        from pellucid import __version__

        print(f"pellucid {__version__}")
        return 0
    return _call(args[0], args[1:])


def _call(verb: str, args: list[str]) -> int:
    from pellucid.core.errors import PellucidError, TrainingError, nearest

    if verb not in VERBS:
        return _refuse(f"unknown command {verb!r}; {nearest(verb, VERBS)}")
    try:
        return importlib.import_module(f"pellucid.cli.{module_of(verb)}").main(args)
    except TrainingError as error:
        _refuse(" ".join(str(error).split()))
        return 1
    except PellucidError as error:
        return _refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("pellucid: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("PELLUCID_LOG", "").lower() == "debug":
            raise
        reason = " ".join(str(error).split())
        print(
            f"pellucid: failed: {type(error).__name__}: {reason} "
            "(set PELLUCID_LOG=debug for the traceback)",
            file=sys.stderr,
        )
        return 1


def _refuse(message: str) -> int:
    print(f"pellucid: error: {message}", file=sys.stderr)
    return 2


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {says}" for verb, says in VERBS.items()]
    return "\n".join(
        [
            "usage: pellucid COMMAND [OPTIONS]",
            "",
            "Language models made of readable units.",
            "",
            *lines,
            "",
            "pellucid COMMAND --help tells a command's options.",
        ]
    )
