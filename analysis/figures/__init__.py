"""Figures: one module a subject, each giving exhibits; `style` has their size, colours and files."""
