"""Prompts for people who do not exist: a grammar, its declared balance, and draws from it."""

from raypipe.prompts.drawing import Prompt as Prompt
from raypipe.prompts.drawing import Share as Share
from raypipe.prompts.drawing import balance as balance
from raypipe.prompts.drawing import draw as draw
from raypipe.prompts.drawing import say as say
from raypipe.prompts.grammar import PORTRAITS as PORTRAITS
from raypipe.prompts.grammar import Grammar as Grammar
from raypipe.prompts.grammar import load_grammar as load_grammar
