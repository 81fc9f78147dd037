//! Structures as the kernel lays them out.

/// A structure of integers with no hidden padding: every pattern of bytes is a value, and all of its bytes are sent.
///
/// # Safety
/// The type is `repr(C)`, of integers and arrays of integers alone, and its fields' sizes add up to its own.
#[expect(unsafe_code, reason = "what is Plain is read from and sent as bytes")]
pub unsafe trait Plain: Copy + 'static {
    /// All bytes zero, as padding and reserved words have to be.
    const ZERO: Self;
    /// Whether there are pointers in it, which a kernel follows.
    const POINTS: bool;

    /// The value at `offset` of `bytes`.
    ///
    /// # Panics
    /// When it does not lie inside.
    fn at(bytes: &[u8], offset: usize) -> Self {
        let bytes = &bytes[offset..offset + size_of::<Self>()];
        // SAFETY: the slice has the size of the type, and any bytes are a value of it.
        unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
    }
}

/// Declares structures with the offset of each field, and asserts them on every host: sizes, offsets, and that padding
/// is written out, so that none of it is left to chance.
macro_rules! layouts {
    (pointers: $($rest:tt)*) => { $crate::layout::layouts! { @ true $($rest)* } };
    (@ $points:literal $(
        $(#[$meta:meta])*
        $name:ident($size:literal) { $($offset:literal $field:ident: $type:ty,)* }
    )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = concat!("At offset ", $offset, ".")] pub $field: $type,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
            assert!(0 $(+ size_of::<$type>())* == $size, "padding is not written out");
        };

        #[expect(unsafe_code, reason = "what is Plain is read from and sent as bytes")]
        // SAFETY: integers alone, and no hidden padding: both as written where it is declared, the latter asserted.
        unsafe impl $crate::layout::Plain for $name {
            // SAFETY: zeros are a value of every integer.
            const ZERO: Self = unsafe { std::mem::zeroed() };
            const POINTS: bool = $points;
        }
    )*};
    ($($rest:tt)*) => { $crate::layout::layouts! { @ false $($rest)* } };
}

pub(crate) use layouts;
