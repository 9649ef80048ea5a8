"""The API's reference, made from the protos: every service and message with what they say of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

PROTOS = Path(__file__).resolve().parents[1] / "protos"
# Places in a file's description, as descriptor.proto numbers them.
_MESSAGES, _SERVICES, _PARTS = 4, 6, 2

Comments = Mapping[tuple[int, ...], str]


def prose(text: str) -> list[str]:
    """A description in Markdown: examples as code, nothing in it taken for markup."""
    found: list[str] = []
    for each in text.strip().split("\n\n"):
        if any(line.startswith("  ") for line in each.splitlines()):
            found += ["```text", each, "```", ""]
        elif each:
            found += [marked(" ".join(each.split())), ""]
    return found


def marked(text: str) -> str:
    """Text with everything that Markdown would read escaped, but for code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<>|\[\]#{}])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def described() -> Sequence[FileDescriptorProto]:
    """All protos with their comments."""
    from grpc_tools import protoc

    own = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        words = [f"-I{PROTOS}", f"-I{own}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *words, *map(str, sorted(PROTOS.rglob("*.proto")))]) != 0:
            raise SystemExit("the protos cannot be read")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def api_page() -> str:
    """The whole page."""
    lines = ["# API", "", "gRPC. Every daemon serves health and reflection too:"]
    lines += ["[every service by hand](../docs/grpcurl.md).", ""]
    for file in described():
        said = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
        lines += [f"## {file.name}", "", *services(file, said), *messages(file, said)]
    return "\n".join(lines) + "\n"


def services(file: FileDescriptorProto, said: Comments) -> list[str]:
    """Each service with a row for each method."""
    lines: list[str] = []
    for at, service in enumerate(file.service):
        lines += [f"### {service.name}", "", *prose(said.get((_SERVICES, at), ""))]
        lines += ["| method | request → response | |", "|---|---|---|"]
        for number, method in enumerate(service.method):
            text = said.get((_SERVICES, at, _PARTS, number), "")
            lines.append(f"| `{method.name}` | {shape(method)} | {row(text)} |")
        lines.append("")
    return lines


def messages(file: FileDescriptorProto, said: Comments) -> list[str]:
    """Each message that has fields, with a row for each."""
    lines: list[str] = []
    for at, message in enumerate(file.message_type):
        if not message.field:
            continue
        lines += [f"### {message.name}", "", *prose(said.get((_MESSAGES, at), ""))]
        lines += ["| field | type | |", "|---|---|---|"]
        for number, field in enumerate(message.field):
            text = said.get((_MESSAGES, at, _PARTS, number), "")
            lines.append(f"| `{field.name}` | {kind(field)} | {row(text)} |")
        lines.append("")
    return lines


def shape(method: MethodDescriptorProto) -> str:
    """What a method takes and gives."""
    asked, told = (name.rpartition(".")[2] for name in (method.input_type, method.output_type))
    asked = f"stream {asked}" if method.client_streaming else asked
    told = f"stream {told}" if method.server_streaming else told
    return f"`{asked}` → `{told}`"


def kind(field: FieldDescriptorProto) -> str:
    """A field's type in words."""
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = field.type_name.rpartition(".")[2] or name
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def row(text: str) -> str:
    """A comment in a cell of a table."""
    return marked(" ".join(text.split()))
