//! Instructions of BPF programs (linux/bpf.h, `struct bpf_insn`).

/// One instruction as the kernel reads it, little-endian: opcode, registers, offset,
/// immediate value.
pub type Instruction = u64;

/// Loads four bytes from where a register points.
pub(crate) const LOAD_WORD: u8 = 0x61;
/// Loads eight bytes.
pub(crate) const LOAD: u8 = 0x79;
/// Loads a value of eight bytes that comes in two instructions.
pub(crate) const LOAD_WIDE: u8 = 0x18;
/// Stores eight bytes.
pub(crate) const STORE: u8 = 0x7b;
/// Stores a number in eight bytes.
pub(crate) const STORE_NUMBER: u8 = 0x7a;
pub(crate) const ADD: u8 = 0x07;
/// On the lower half.
pub(crate) const AND: u8 = 0x54;
/// On the lower half.
pub(crate) const SHIFT_RIGHT: u8 = 0x74;
pub(crate) const SHIFT_RIGHT_WIDE: u8 = 0x77;
pub(crate) const MOVE: u8 = 0xb7;
pub(crate) const COPY: u8 = 0xbf;
pub(crate) const JUMP_IF_EQUAL: u8 = 0x15;
/// On the lower half.
pub(crate) const JUMP_IF_NOT_EQUAL: u8 = 0x56;
/// Two registers.
pub(crate) const JUMP_IF_DIFFERENT: u8 = 0x5d;
pub(crate) const CALL: u8 = 0x85;
pub(crate) const EXIT: u8 = 0x95;

/// One instruction.
pub(crate) fn encode(opcode: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([opcode, to | (from << 4), low, high, a, b, c, d])
}
