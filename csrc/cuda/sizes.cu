// Prints what the compiler does not report of `fused`: threads and dynamic shared memory of a block. For report.py.
#include <cstdio>

#include "square.cuh"

namespace {

template <int Side>
void print() {
    using S = fastcrit::cuda::Square<Side>;
    std::printf("fused %d: %d threads, %d bytes of dynamic shared memory\n", Side, S::block, S::shared_bytes);
}

}  // namespace

int main() {
    print<16>();
    print<32>();
    print<64>();
    print<128>();
    return 0;
}
