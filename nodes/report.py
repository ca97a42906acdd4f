"""What the pack's nodes reported about a run, as text."""

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from .host.inputs import checked
from .host.run.messages import show
from .host.run.outputs import report_output, with_report
from .host.run.told import TOLD

NOTHING = "No Guidekit node had anything to say."


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.MatchType.Template("sampled")
        return io.Schema(
            node_id="GuidekitReport",
            display_name="Guidekit Report",
            category="guidekit/inspect",
            description="All that Guidekit's nodes had to say of a run, in the order of the graph: what they saved or "
            "found, or why they did nothing. Connect it behind the sampler, for patched models speak when they are "
            "sampled.",
            search_aliases=["report", "messages", "log", "what happened", "why no effect", "debug", "inspect"],
            inputs=[
                io.MatchType.Input(
                    "sampled",
                    template=template,
                    tooltip="The latent that the sampler gives, or anything made of it; it is passed on as it is. What "
                    "the nodes before it said is reported.",
                )
            ],
            outputs=[
                io.MatchType.Output(template=template, display_name="sampled", tooltip="The input, unchanged."),
                report_output("One line for each thing said, with the node that said it and the sampler's, by id."),
            ],
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, sampled) -> io.NodeOutput:
        context, nodes = get_executing_context(), cls.hidden.prompt if cls.hidden else None
        entries = TOLD.behind(context, nodes) if context is not None and nodes else []
        lines = [line.named(entry.source) for entry in entries for line in entry.lines if line.label]
        return with_report(sampled, report=show("\n".join(lines) or NOTHING))
