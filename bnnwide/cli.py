"""The command line: `bnnwide ess`, effective sample size across widths, on digits or on a file of one's own."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bnnwide import __version__

# Nothing heavy here: JAX is imported after the arguments have been read, so help and refusals are quick.

EXAMPLES = """\
examples:
  bnnwide ess
      digits, widths 64, 256 and 1024, three methods: about three minutes
  bnnwide ess --data my.csv --noise 0.3 --out out/mine
      a table of numbers; its last column is the target
  bnnwide ess --data my.npz --n 256 --depth 2
      arrays x and y, or x_train, y_train, x_test and y_test
  bnnwide ess --widths 256,4096 --methods nuts-standard,pcn-collapsed
"""

METHODS = """
methods:
  nuts-standard hmc-standard
      NumPyro's samplers on the weights as they are
  nuts-repriorised hmc-repriorised
      the same on repriorised weights
  paper
      leapfrog HMC as the code released with Hron et al. (2022) does it
  splithmc-standard pcn-standard pcnl-standard
  splithmc-repriorised pcn-repriorised pcnl-repriorised
      samplers whose proposals keep the Gaussian prior exactly
  splithmc-collapsed pcn-collapsed pcnl-collapsed
      the same with the readout integrated out
  mclmc-standard mclmc-repriorised
      unadjusted microcanonical Langevin, biased by its step size (BlackJAX)
  ngd-standard
      unadjusted natural gradient descent, biased by its learning rate
  ess-standard ess-repriorised ess-collapsed
      elliptical slice sampling (BlackJAX)
  mean-field functional-vi functional-laplace laplace ensemble
      approximations of the standard form: no ESS, only how they predict
"""

DESCRIPTION = """\
Sample the posterior of a wide GELU network at several widths with several
methods, each for the same time; compare effective sample size (ESS) per
gradient and per second. Writes ess.nc (summaries of the draws) and ess.png.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bnnwide: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the arguments after the program's name; None means those of the process.

    Returns:
      The exit status: 0, 2 for a bad argument or file, 130 when interrupted.
    """
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except ImportError as error:
        return _refuse(error)  # a method that needs an extra package
    except KeyboardInterrupt:
        print("bnnwide: interrupted", file=sys.stderr)
        return 130


def _ess(args: argparse.Namespace) -> int:
    """Measure effective sample size across widths, print the table and save table and figure."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # the figure goes to a file; no window is needed
    try:
        import jax

        jax.config.update("jax_enable_x64", args.precision == 64)  # before any array is made
        import bnnwide as bw
        from bnnwide import datasets
        from bnnwide.checks import check_choice

        for method in args.methods:
            check_choice("bnnwide ess", "each of --methods", method, tuple(bw.METHODS))
        data = datasets.load(args.data, args.n)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, TypeError) as error:
        return _refuse(error)

    (n, num_inputs), num_outputs = data.x.shape, data.y.shape[1]
    kind = "regression" if data.labels is None else f"{num_outputs} classes"
    print(f"{data.name}: n = {n}, d = {num_inputs}, {kind}, {len(data.x_test)} test rows; {jax.devices()[0]}")

    def network(width: int) -> Any:
        hidden = bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu()
        net = hidden
        for _ in range(args.depth - 1):
            net = net >> hidden
        return net >> bw.Dense(num_outputs, w_scale=1.0, b_scale=0.1)

    store, picture = args.out / "ess.nc", args.out / "ess.png"
    table = bw.ess_by_width(
        network,
        bw.Gaussian(scale=args.noise),
        data.x,
        data.y,
        widths=args.widths,
        methods=args.methods,
        key=jax.random.key(args.seed),
        x_test=data.x_test,
        y_test=data.y_test,
        num_chains=args.chains,
        seconds=args.seconds,
        progress=True,
        store=store,
    )
    print(bw.format_ess_table(table))
    bw.plot_ess_by_width(table).savefig(picture)
    print(f"summaries of the draws: {store}\nfigure: {picture}")
    return 0


def _refuse(error: Exception) -> int:
    """Say in one line what is wrong with an argument or a file."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = " ".join(str(error).split())
    print(f"bnnwide: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bnnwide",
        allow_abbrev=False,
        description="Wide Bayesian neural networks: sample their posterior, and measure how well.",
        epilog=EXAMPLES + "\n`bnnwide ess --help` lists the options and the methods.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnnwide {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    ess = commands.add_parser(
        "ess",
        allow_abbrev=False,
        help="effective sample size across widths: a table, a figure, a file",
        description=DESCRIPTION,
        epilog=EXAMPLES + METHODS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ess.set_defaults(run=_ess)
    problem = ess.add_argument_group("the problem")
    problem.add_argument("--data", default="digits", metavar="NAME", help="'digits', or an .npz or .csv file (digits)")
    problem.add_argument("--n", type=_count, metavar="N", help="training rows (128, or all of a smaller file)")
    problem.add_argument(
        "--noise", type=_positive, default=0.1, metavar="SCALE", help="noise scale of the targets (0.1)"
    )
    problem.add_argument("--depth", type=_count, default=1, metavar="N", help="hidden layers (1)")
    sweep = ess.add_argument_group("the sweep")
    sweep.add_argument(
        "--widths", type=_counts, default=[64, 256, 1024], metavar="N,N,...", help="hidden widths (64,256,1024)"
    )
    sweep.add_argument(
        "--methods",
        type=_names,
        default=["nuts-standard", "paper", "splithmc-collapsed"],
        metavar="M,M,...",
        help="(nuts-standard,paper,splithmc-collapsed)",
    )
    sweep.add_argument("--chains", type=_chains, default=4, metavar="N", help="chains of each cell, 2 or more (4)")
    sweep.add_argument("--seconds", type=_positive, default=10.0, metavar="S", help="sampling time of each cell (10)")
    sweep.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of all random numbers (0)")
    sweep.add_argument("--precision", type=int, choices=(32, 64), default=64, help="bits of a float (64)")
    sweep.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the files (out)")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _chains(text: str) -> int:
    count = _count(text)
    if count < 2:  # R-hat compares chains
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 2; got {text!r}")
    return count


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**32 - 1; got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be distinct names with commas between; got {text!r}")
    return names


def _counts(text: str) -> list[int]:
    parts = _names(text)
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be whole numbers of at least 1 with commas between; got {text!r}")
    return [int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
