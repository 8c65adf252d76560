"""GPT-2 trained by the paper's methods and its rivals, from the command line: `inrank train`, `compare`, `params`."""
