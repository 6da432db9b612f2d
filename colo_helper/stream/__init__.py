"""The migration streams of Xen as plain tables: records, how they are packed, and what is refused unread."""
