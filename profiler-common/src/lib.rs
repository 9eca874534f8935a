//! The contract of greenscope's kernel and user parts, and the one unwinder.
//!
//! Everything here runs in three places: in the kernel (eBPF), in user space over
//! the live process, and in tests over recorded memory. So it is `core` only, has
//! no `unsafe`, never panics, and every loop and length has its bound in
//! [`limits`]. Foreign memory is reached through [`memory::Memory`] alone, and
//! what cannot be read or believed is a numbered [`fault::Fault`].

#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod clock;
pub mod code;
pub mod fault;
pub mod flags;
pub mod greenlet;
pub mod http;
pub mod kind;
pub mod label;
pub mod layout;
pub mod limits;
pub mod memory;
pub mod owner;
pub mod queue;
pub mod record;
pub mod running;
pub mod walk;
