//! The device rules of a container as a BPF program: cgroup v2 has no other way
//! to say them (cgroups(7), kernel's cgroup-v2.rst "Device controller";
//! `BPF_PROG_TYPE_CGROUP_DEVICE`, since Linux 4.15).

use crate::bpf::{
    AND, COPY, EXIT, Instruction, JUMP_IF_NOT_EQUAL, LOAD_WORD, MOVE, SHIFT_RIGHT, encode,
};
use crate::plan::DeviceRule;

/// Block device in the lower half of the access word (linux/bpf.h).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
/// Making a node, reading and writing, in the upper half.
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Registers: the context, then what is loaded of it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// A program that admits what a rule admits, and nothing else.
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        encode(LOAD_WORD, KIND, CONTEXT, 0, 0),
        encode(AND, KIND, 0, 0, 0xffff),
        encode(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        encode(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        encode(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        encode(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        code.extend(admit(rule));
    }
    code.extend([encode(MOVE, RESULT, 0, 0, 0), encode(EXIT, 0, 0, 0, 0)]);
    code
}

/// Conditions that skip the rest of the block where they do not hold.
fn admit(rule: &DeviceRule) -> Vec<Instruction> {
    let mut unequal = vec![(KIND, if rule.block { BLOCK } else { CHARACTER })];
    unequal.extend(rule.major.map(|number| (MAJOR, number)));
    unequal.extend(rule.minor.map(|number| (MINOR, number)));
    let beyond = !(READ | WRITE | if rule.make { MAKE } else { 0 });
    // Loads of the forbidden bits, their comparison, and the answer.
    let mut left = i16::try_from(unequal.len() + 5).unwrap_or(i16::MAX);
    let mut code = Vec::new();
    for (register, wanted) in unequal {
        left -= 1;
        code.push(encode(JUMP_IF_NOT_EQUAL, register, 0, left, wanted));
    }
    code.extend([
        encode(COPY, SCRATCH, ACCESS, 0, 0),
        encode(AND, SCRATCH, 0, 0, beyond),
        encode(JUMP_IF_NOT_EQUAL, SCRATCH, 0, 2, 0),
        encode(MOVE, RESULT, 0, 0, 1),
        encode(EXIT, 0, 0, 0, 0),
    ]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn admits(code: &[Instruction], block: bool, access: u32, device: (u32, u32)) -> bool {
        let word = if block { 1 } else { 2 } | (access << 16);
        let context = [word, device.0, device.1];
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        for _step in 0..10_000 {
            let [opcode, names, low, high, a, b, c, d] = code[at].to_le_bytes();
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let offset = i16::from_le_bytes([low, high]);
            let value = i32::from_le_bytes([a, b, c, d]).cast_unsigned();
            at += 1;
            match opcode {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                COPY => registers[to] = registers[from],
                JUMP_IF_NOT_EQUAL if registers[to] != value => {
                    at = at.checked_add_signed(isize::from(offset)).unwrap();
                }
                JUMP_IF_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("no such opcode {other:x}"),
            }
        }
        panic!("the program does not end");
    }

    fn rule(block: bool, major: Option<i32>, minor: Option<i32>, make: bool) -> DeviceRule {
        DeviceRule { block, major, minor, make }
    }

    #[test]
    fn a_program_admits_what_its_rules_say_and_nothing_else() {
        let rules = [
            rule(false, Some(1), Some(3), true),
            rule(false, Some(136), None, true),
            rule(true, Some(8), Some(0), false),
        ];
        let code = program(&rules);
        for (block, access, device, wanted) in [
            (false, 6, (1, 3), true),
            (false, 7, (1, 3), true),
            (false, 6, (1, 1), false),
            (true, 6, (1, 3), false),
            (false, 2, (136, 77), true),
            (false, 2, (137, 77), false),
            (true, 6, (8, 0), true),
            (true, 2, (8, 0), true),
            (true, 7, (8, 0), false),
            (true, 1, (8, 0), false),
            (true, 2, (8, 1), false),
            (false, 2, (10, 200), false),
        ] {
            assert_eq!(admits(&code, block, access, device), wanted, "{block} {access} {device:?}");
        }
        assert!(!admits(&program(&[]), false, 2, (1, 3)));
    }

    #[test]
    fn an_instruction_is_laid_out_as_the_kernel_reads_it() {
        assert_eq!(encode(EXIT, 0, 0, 0, 0), 0x95);
        assert_eq!(encode(LOAD_WORD, 4, 1, 4, 0).to_le_bytes(), [0x61, 0x14, 4, 0, 0, 0, 0, 0]);
    }
}
