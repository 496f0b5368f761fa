"""The kinds of run (distillation, teacher, classifier, ODE pairs), and the use of trained models."""
