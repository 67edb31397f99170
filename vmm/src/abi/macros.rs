//! What declares layouts and requests.

macro_rules! layouts {
    ($(
        $(#[$meta:meta])*
        $name:ident, $size:literal bytes { $( $(#[$field_meta:meta])* $field:ident: $ty:ty, )* }
    )*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs, reason = "the fields are those of the structure in vmm_dev.h; units stand with the structure")]
            pub struct $name {
                $( $(#[$field_meta])* pub $field: $ty, )*
            }

            const _: () = assert!(size_of::<$name>() == $size, stringify!($name));

            impl Default for $name {
                fn default() -> $name {
                    <$name as zerocopy::FromZeros>::new_zeroed()
                }
            }
        )*
    };
}

macro_rules! requests {
    ($($name:ident = $make:ident $(<$argument:ty>)? ($num:literal);)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, number ", stringify!($num), ".")]
            pub const $name: Request = Request::$make $(::<$argument>)? ($num);
        )*

        /// Every request of this module with its name.
        pub const REQUESTS: &[(&str, Request)] = &[$((stringify!($name), $name)),*];
    };
}

macro_rules! exitcodes {
    ($($name:ident = $number:literal,)*) => {
        $(
            #[doc = concat!("`VM_EXITCODE_", stringify!($name), "`.")]
            pub const $name: u32 = $number;
        )*

        /// The exit code's name without its prefix, or `unknown`.
        #[must_use]
        pub fn name(code: u32) -> &'static str {
            match code {
                $($number => stringify!($name),)*
                _ => "unknown",
            }
        }
    };
}

pub(super) use {exitcodes, layouts, requests};
