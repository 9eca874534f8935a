//! The steps over greenlet's own objects.
