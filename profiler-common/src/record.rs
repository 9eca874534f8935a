//! What the kernel part keeps and sends.
