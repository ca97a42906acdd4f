"""Custom nodes that score, for the headless tests only."""

from comfy_api.latest import ComfyExtension, io


class Scores(io.ComfyNode):
    """A list of numbers, one a line."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            "TestScores",
            category="tests",
            inputs=[io.String.Input("values", multiline=True)],
            outputs=[io.Float.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, values):
        return io.NodeOutput([float(line) for line in values.splitlines()])


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Scores]


async def comfy_entrypoint():
    return Extension()
