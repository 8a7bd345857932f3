// Exits with 0 when AMX tile instructions really run. Some virtual machines list AMX among the
// CPU's features and then refuse its instructions; -march=native believes the list.
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
    enum { kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18 };
    if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) != 0) return 1;
    unsigned char config[64] __attribute__((aligned(64)));
    memset(config, 0, sizeof config);
    config[0] = 1;  // palette
    for (int tile = 0; tile < 3; ++tile) {
        config[16 + 2 * tile] = 64;  // bytes a row
        config[48 + tile] = 16;      // rows
    }
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_dpbssd(0, 1, 2);
    _tile_release();
    return 0;
}
