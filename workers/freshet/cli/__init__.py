"""The command line `freshet`: one module per group of verbs.

Parts that are slow to import (Faust, Feast, the Triton client) are imported inside the verbs.
"""

import logging

import typer

from freshet.cli import (
    archive,
    bench,
    check,
    demo,
    dlq,
    explain,
    features,
    init,
    inspect_user,
    plan,
    policies,
    popularity,
    produce,
    quality,
    release,
    replay,
    report,
    schemas,
    serve,
    signing,
    simulate,
    stack,
    tail,
    topics,
    train,
    verify,
    worker,
)
from freshet.cli.errors import Group

# kafka-python reports each refused connection as a warning; the verbs say it once, in their own words.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

app = typer.Typer(
    cls=Group,
    name="freshet",
    help="A stream of user events in, a stream of fresh recommendations out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up", rich_help_panel="Local stack")(stack.up)
app.command("down", rich_help_panel="Local stack")(stack.down)
app.command("demo", rich_help_panel="Local stack")(demo.demo)
app.command("init", rich_help_panel="Workers")(init.init)
app.add_typer(topics.app, name="topics", rich_help_panel="Workers")
app.command("worker", rich_help_panel="Workers")(worker.worker)
app.command("serve", rich_help_panel="Workers")(serve.serve)
app.command("archive", rich_help_panel="Workers")(archive.archive)
app.command("check", rich_help_panel="Workers")(check.check)
app.command("produce", rich_help_panel="Streams")(produce.produce)
app.command("tail", rich_help_panel="Streams")(tail.tail)
app.command("inspect", rich_help_panel="Streams")(inspect_user.inspect_user)
app.add_typer(features.app, name="features", rich_help_panel="Streams")
app.command("explain", rich_help_panel="Streams")(explain.explain)
app.command("replay", rich_help_panel="Streams")(replay.replay)
app.command("verify", rich_help_panel="Streams")(verify.verify)
app.command("report", rich_help_panel="Streams")(report.report)
app.command("ope", rich_help_panel="Models")(policies.ope)
app.command("compare", rich_help_panel="Models")(policies.compare)
app.command("simulate", rich_help_panel="Streams")(simulate.simulate)
app.command("schemas", rich_help_panel="Streams")(schemas.schemas)
app.add_typer(dlq.app, name="dlq", rich_help_panel="Streams")
app.add_typer(popularity.app, name="popularity", rich_help_panel="Streams")
app.command("train", rich_help_panel="Models")(train.train)
app.command(
    "bench",
    rich_help_panel="Local stack",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(bench.bench)
app.command(
    "quality",
    rich_help_panel="Models",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(quality.quality)
app.command("publish", rich_help_panel="Models")(release.publish)
app.command("promote", rich_help_panel="Models")(release.promote)
app.command("rollback", rich_help_panel="Models")(release.rollback)
app.command("models", rich_help_panel="Models")(release.models)
app.command("build-plan", rich_help_panel="Models")(plan.build_plan)
app.command("sign", rich_help_panel="Models")(signing.sign)
app.command("keys", rich_help_panel="Models")(signing.keys)

__all__ = ["app"]
