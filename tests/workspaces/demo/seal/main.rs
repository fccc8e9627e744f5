//! Copies a file and appends a line with its checksum: `seal IN OUT`.

use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: seal IN OUT");
        return ExitCode::from(2);
    };
    match seal(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seal: {input} -> {output}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seal(input: &str, output: &str) -> std::io::Result<()> {
    let mut bytes = fs::read(input)?;
    let checksum = crc32::crc32(&bytes);
    bytes.extend_from_slice(format!("crc32 {checksum:08x}\n").as_bytes());
    fs::write(output, bytes)
}
