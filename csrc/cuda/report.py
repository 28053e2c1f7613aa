"""The table of docs/cuda.md from what the compiler and sizes.cu report (make cuda-build), read from standard input."""

import re
import sys

# Registers and shared memory of a multiprocessor, and the most threads it holds, by compute capability. A block's
# registers are handed out by warps, in pieces of 256.
DEVICES = {"sm_80": (65536, 164 << 10, 2048), "sm_90": (65536, 228 << 10, 2048), "sm_100": (65536, 228 << 10, 2048)}
RESERVED = 1024  # bytes of shared memory that every block takes for the system
BLOCK = 256  # threads, of all kernels but `fused` and `rectangle`
KERNELS = (
    "less_mean_field|less_own_mean|averages|fused|rectangle|segments|first_modes|add_parts|record|add_pieces|fix_offset"
)
TYPES = {"Half": "half", "BFloat16": "bfloat16", "f": "float"}


def occupancy(device: str, threads: int, registers: int, shared: int) -> float:
    """Threads of the blocks that fit, of the most there can be."""
    all_registers, all_shared, most = DEVICES[device]
    by_registers = all_registers // (-(-registers * 32 // 256) * 256) * 32 // threads
    return min(by_registers, all_shared // (shared + RESERVED), most // threads, 32) * threads / most


def kernels(text: str) -> dict[tuple[str, str], dict[str, tuple[int, int, int]]]:
    """Registers, static shared memory and spilled bytes of every kernel on every device."""
    found: dict[tuple[str, str], dict[str, tuple[int, int, int]]] = {}
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.S,
    )
    for name, device, stack, stores, loads, registers, rest in pattern.findall(text):
        kernel = re.search(rf"_GLOBAL__N__\w+?\d({KERNELS})(?:I(\w*?)E?Ev|E)", name)
        if kernel is None:
            raise SystemExit(f"unknown kernel {name}")
        arguments = kernel[2] or ""
        kind = next((label for key, label in TYPES.items() if key in arguments), "")
        if "Complex" in arguments:
            kind = "complex"
        number = re.search(r"Li(\d+)E", arguments)
        label = (kernel[1], " ".join(filter(None, [number[1] if number else "", kind])))
        static = re.search(r"(\d+) bytes smem", rest)
        spills = int(stack) + int(stores) + int(loads)
        found.setdefault(label, {})[device] = (int(registers), int(static[1]) if static else 0, spills)
    return found


def fused_sizes(text: str) -> dict[int, tuple[int, int]]:
    """Threads and dynamic shared memory of a block of `fused`, by side."""
    lines = re.findall(r"^fused (\d+): (\d+) threads, (\d+) bytes", text, re.M)
    return {int(side): (int(threads), int(shared)) for side, threads, shared in lines}


def main() -> None:
    """Print the table; fail on spills and on less than half of the threads."""
    lines = []
    bad = []
    text = sys.stdin.read()
    sizes = fused_sizes(text)
    for (kernel, variant), by_device in sorted(kernels(text).items()):
        # `rectangle` takes as many threads and bytes as the shape asks for: here the most threads.
        threads, dynamic = (1024, 0) if kernel == "rectangle" else (BLOCK, 0)
        if kernel == "fused":
            threads, dynamic = sizes[int(variant.split()[0])]
        registers, shared, share = [], 0, []
        for device, (used, static, spills) in sorted(by_device.items(), key=lambda item: int(item[0][3:])):
            shared = static + dynamic
            registers.append(str(used))
            share.append(occupancy(device, threads, used, shared))
            if spills or share[-1] < 0.5:
                bad.append(f"{kernel} {variant} on {device}: {spills} bytes spilled, occupancy {share[-1]:.0%}")
        occupancies = ", ".join(f"{100 * s:.0f} %" for s in share)
        lines.append(f"| {kernel} | {variant} | {threads} | {', '.join(registers)} | {shared} | {occupancies} |")
    print("| kernel | variant | threads a block | registers | shared memory, bytes | occupancy |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))
    if bad or not lines:
        raise SystemExit("\n".join(["the report does not hold:", *bad]))


if __name__ == "__main__":
    main()
