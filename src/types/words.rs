//! Enums whose variants have stable words, for messages, JSON and SQL. Declared in one place, so that no list of them elsewhere
//! lacks one.

/// The enum, all of its variants in order, and their words both ways.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$docs:meta])* $variant:ident $(= $number:literal)? => $word:literal,)*
        }
    ) => {
        $(#[$meta])*
        pub enum $name {
            $($(#[$docs])* $variant $(= $number)?),*
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it in messages, JSON and SQL.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }

            /// The one that a word stands for.
            pub fn from_name(name: &str) -> Option<Self> {
                let mut all = Self::ALL.iter().copied();
                all.find(|one| one.name() == name)
            }
        }
    };
}

pub(super) use words;
