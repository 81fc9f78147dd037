//! Request numbers: what `ioctl(2)` is told by them, and what they take.

use std::marker::PhantomData;

use crate::layout::Plain;

/// Nothing is copied.
pub const VOID: u32 = 0x2000_0000;
/// The kernel writes the argument.
pub const OUT: u32 = 0x4000_0000;
/// The kernel reads the argument.
pub const IN: u32 = 0x8000_0000;

/// The code of a request: direction, size of the argument, group and number.
#[must_use]
pub const fn ioc(dir: u32, group: u8, num: u8, size: usize) -> u32 {
    assert!(size <= 0x1fff);
    dir | (size as u32) << 16 | (group as u32) << 8 | num as u32
}

/// The group of all requests on `/dev/vmm/NAME`.
const VM: u8 = b'v';
/// The group of all requests on `/dev/vmmctl`.
const CONTROL: u8 = b'V';

/// A request whose argument is a `T`.
#[derive(Debug)]
pub struct Request<T> {
    /// Its code.
    pub code: u32,
    argument: PhantomData<fn(T)>,
}

impl<T> Clone for Request<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Request<T> {}

impl<T: Plain> Request<T> {
    const fn of(dir: u32, group: u8, num: u8) -> Self {
        Request { code: ioc(dir, group, num, size_of::<T>()), argument: PhantomData }
    }

    /// "W": the kernel reads a `T`.
    pub(crate) const fn w(num: u8) -> Self {
        Self::of(IN, VM, num)
    }

    /// "R": the kernel writes a `T`.
    pub(crate) const fn r(num: u8) -> Self {
        Self::of(OUT, VM, num)
    }

    /// "RW": both.
    pub(crate) const fn rw(num: u8) -> Self {
        Self::of(IN | OUT, VM, num)
    }

    /// "RW" on the control node.
    pub(crate) const fn control(num: u8) -> Self {
        Self::of(IN | OUT, CONTROL, num)
    }
}

impl Request<()> {
    /// No argument.
    pub(crate) const fn void(num: u8) -> Self {
        Request { code: ioc(VOID, VM, num, 0), argument: PhantomData }
    }
}

/// Declares requests by their names in the kernel's headers, and the table of them.
macro_rules! requests {
    ($table:ident: $($(#[$meta:meta])* $name:ident: $type:ty = $way:ident $num:literal;)*) => {
        $(
            $(#[$meta])*
            #[doc = concat!("Takes [`", stringify!($type), "`].")]
            pub const $name: $crate::request::Request<$type> = $crate::request::Request::<$type>::$way($num);
        )*

        /// Those requests, by name.
        pub const $table: &[(&str, u32)] = &[$((stringify!($name), $name.code)),*];
    };
}

pub(crate) use requests;
