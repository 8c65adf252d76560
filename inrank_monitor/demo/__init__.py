"""The demo: a small GPT-2 trained from scratch on real text, with the tracker attached.

loop       the example to copy from, and what the command does around it
training   model, optimizer, schedule and random generators; their checkpoint
text       the text and its byte-level BPE
options    the command's options, and what a run keeps of them
"""
