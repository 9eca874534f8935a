//! greenscope's kernel part.
#![no_std]
#![no_main]
