/* Debian 12's Wine 8.0 has no bcryptprimitives.dll, and a program of Rust's that misses it exits
 * with 53 and no word. Rust's std takes one function from it: random bytes. */
#include <windows.h>

#define CHUNK_MAX 0x10000000

BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE out, SIZE_T len)
{
    while (len > 0) {
        ULONG chunk = len > CHUNK_MAX ? CHUNK_MAX : (ULONG)len;

        if (!SystemFunction036(out, chunk))
            return FALSE;
        out += chunk;
        len -= chunk;
    }
    return TRUE;
}
