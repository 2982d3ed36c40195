"""``vidtune chat``: questions about one video, at the prompt or one on the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from vidtune.commands.model_options import add_model_options, open_from
from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.run.answerer import Answerer
from vidtune.run.predict import media_ref

HELP = "Type a question; /video PATH shows another video, /new forgets the conversation, /quit or Ctrl-D ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--video", help="video, image or folder of frames; without it the talk is about text alone")
    parser.add_argument("--question", help="ask this, print the answer and end; without it a prompt opens")


def run(arguments: argparse.Namespace) -> int:
    answerer = open_from(arguments, "data.num_workers=0")
    chat = Conversation(answerer, arguments.video)
    if arguments.question is not None:
        print(chat.ask(arguments.question))
        return 0
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        if line == "/new":
            chat = Conversation(answerer, chat.video)
        elif line.startswith("/video "):
            chat = _with_video(chat, line.removeprefix("/video ").strip())
        elif line.startswith("/"):
            print(HELP)
        elif line:
            print(chat.ask(line))


@dataclass
class Conversation:
    """Turns about one video.

    Args:
        answerer: the model.
        video: path, or None.
    """

    answerer: Answerer
    video: str | None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.video and not Path(self.video).exists():
            raise UserError(f"{self.video}: there is no such video.")

    def ask(self, question: str) -> str:
        """The model's answer, which becomes part of the conversation.

        Raises:
            UserError: the video cannot be read, or the conversation is longer than the model takes.
        """
        content: tuple[str | MediaRef, ...] = (question,)
        if self.video and not self.messages:
            content = (media_ref(Path(self.video)), question)
        messages = [*self.messages, Message("user", content)]
        [(_, answer, bad)] = self.answerer.generate([Sample("chat", tuple(messages), source="chat")])
        if bad:
            raise UserError(f"{self.video}: it cannot be read: {bad}.")
        self.messages = [*messages, Message("assistant", (answer,))]
        return answer


def _with_video(chat: Conversation, path: str) -> Conversation:
    """A new conversation about another video; the old one goes on where the path is wrong."""
    try:
        return Conversation(chat.answerer, path)
    except UserError as error:
        print(error)
        return chat
