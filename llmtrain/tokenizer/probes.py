"""Texts that some tokenizers do not round-trip."""

from __future__ import annotations

from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK

PROBES = (
    "Plain words, and more of them.",
    " ",
    "\n",
    "\r\n",
    "a\r\nb\rc\n",
    "  two  spaces   ends  ",
    "\ttabs\t\tand \t spaces\t",
    "def f(x):\n    return x  # indented\n\n\n",
    "UPPER lower Title",
    "\x00nul\x00\x00",
    "\ufeffbyte order mark\ufeff",
    "e\u0301 is not \u00e9",
    "\ufb01 \uff21 \u2460 \u00a0 \u3000 \u2028 \u0085",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
    "\U00010348 \U0001d518 \U000e0041 \U0010fffd \U0010ffff \ufffe \uffff",
    "\u2585 \u2047 \ufffd",
    "0123456789 3.14159 \u0663\u0664",
    "it's they're I'LL 'S '\u017f",
    "<unk> <0x41> <s></s> <pad> <|endoftext|>",
    "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c\u3002",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202eright\u202c",
    f"{ESCAPE}0 {ESCAPE}1",
    f"{SPACE_MARK} {SPACE_MARK}{SPACE_MARK}word{SPACE_MARK} {ESCAPE}{SPACE_MARK}1",
)
