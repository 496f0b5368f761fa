"""The kinds of run: distillation, teacher, classifier, ODE pairs; and loading what a run has made."""
