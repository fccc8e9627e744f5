use std::fmt;

/// The digest functions that the store knows, with the numbers of REAPI's `DigestFunction.Value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DigestFunction {
    /// SHA-256, the default of every REAPI client.
    Sha256 = 1,
    /// BLAKE3 with its default output of 32 bytes.
    Blake3 = 9,
}

impl DigestFunction {
    /// Every supported function, the default first.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Blake3];

    /// The function with this number in REAPI's `DigestFunction.Value`; `None` for one we do not serve.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::Sha256),
            9 => Some(Self::Blake3),
            _ => None,
        }
    }

    /// The number in REAPI's `DigestFunction.Value`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The lower-case name, as it stands in resource names and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
