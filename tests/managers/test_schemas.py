from __future__ import annotations

from finemem_lib.managers.schemas import OPERATION_SCHEMA, OPERATION_TOOLS


def test_tools_and_schema_describe_the_same_operations():
    of_tools = {
        tool["function"]["name"].removeprefix("memory_").upper(): tool["function"]["parameters"][
            "required"
        ]
        for tool in OPERATION_TOOLS
    }
    of_schema = {
        one["properties"]["op"]["const"]: one["required"][1:]
        for one in OPERATION_SCHEMA["items"]["anyOf"]
    }
    assert of_tools == of_schema and len(of_tools) == 4
