//! CRC-32 as zip and Ethernet compute it.

/// The checksum of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| (crc >> 8) ^ step((crc ^ u32::from(*byte)) & 0xff))
}

fn step(index: u32) -> u32 {
    (0..8).fold(index, |value, _| if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 })
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn nothing_sums_to_zero() {
        assert_eq!(crc32(b""), 0);
    }
}
