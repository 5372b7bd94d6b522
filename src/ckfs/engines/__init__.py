"""Quotas that the store's own file system keeps and enforces: one driver per file system, behind one interface."""
