/* What CUDA C++ gives a kernel, for the CPU: the same names with the same meaning. Sources: CUDA C++ Programming Guide,
 * CUDA Math API. */
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define NV static inline
#define memcpy __builtin_memcpy
#define memset __builtin_memset
typedef unsigned uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

#define EMU_EXPORT __attribute__((visibility("default")))
extern "C" EMU_EXPORT emu_engine *emu_machine;
emu_engine *emu_machine;
#define threadIdx (emu_machine->thread)
#define blockIdx (emu_machine->block)
#define nv_shared (emu_machine->shared)
#define __syncthreads() emu_machine->barrier()
#define __syncwarp(...) emu_machine->warp(EMU_MEET, nullptr)

/* -- what the compiler's check of alignment calls: a GPU stops at such an address ---------------------------------- */

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_minimal() {
    emu_machine->fail("an address that is not a multiple of what is read or written there");
}

/* -- numbers of 16 bits -------------------------------------------------------------------------------------------- */

template <class To, class From> NV To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

NV float emu_from_half(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) return emu_bits<float>(sign | emu_bits<uint32_t>((float)fraction * 0x1p-24f));
    return emu_bits<float>(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
}
NV uint16_t emu_to_half(float value) { /* to the nearest, ties to even */
    uint32_t bits = emu_bits<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) /* a fraction of 2^-24: what is left of it beside 0.5 */
        return (uint16_t)(sign | (emu_bits<uint32_t>(emu_bits<float>(size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}
NV float emu_from_bfloat(uint16_t bits) { return emu_bits<float>((uint32_t)bits << 16); }
NV uint16_t emu_to_bfloat(float value) {
    uint32_t bits = emu_bits<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
/* A double on its way to 16 bits must not be rounded twice: what float cannot hold goes into its last bit. */
NV float emu_towards_odd(double value) {
    float near = (float)value;
    uint32_t bits = emu_bits<uint32_t>(near);
    if ((double)near == value || value != value || (bits & 0x7fffffff) >= 0x7f800000) return near;
    if ((near > value) == (value > 0)) bits--; /* rounded away from zero */
    return emu_bits<float>(bits | 1);
}

#define EMU_NUMBER(TYPE, TO, FROM)                                                                                    \
    struct TYPE {                                                                                                     \
        uint16_t bits;                                                                                                \
        TYPE() = default;                                                                                             \
        TYPE(float v) : bits(TO(v)) {}                                                                                \
        TYPE(double v) : bits(TO(emu_towards_odd(v))) {}                                                              \
        TYPE(int v) : TYPE((double)v) {}                                                                              \
        TYPE(unsigned v) : TYPE((double)v) {}                                                                         \
        TYPE(short v) : TYPE((double)v) {}                                                                            \
        TYPE(unsigned short v) : TYPE((double)v) {}                                                                   \
        TYPE(long v) : TYPE((double)v) {}                                                                             \
        TYPE(unsigned long v) : TYPE((double)v) {}                                                                    \
        TYPE(long long v) : TYPE((double)v) {}                                                                        \
        TYPE(unsigned long long v) : TYPE((double)v) {}                                                               \
        operator float() const { return FROM(bits); }                                                                 \
    };                                                                                                                \
    NV TYPE operator+(TYPE a, TYPE b) { return TYPE((float)a + (float)b); }                                           \
    NV TYPE operator-(TYPE a, TYPE b) { return TYPE((float)a - (float)b); }                                           \
    NV TYPE operator*(TYPE a, TYPE b) { return TYPE((float)a * (float)b); }                                           \
    NV TYPE operator/(TYPE a, TYPE b) { return TYPE((float)a / (float)b); }                                           \
    NV TYPE operator-(TYPE a) { a.bits ^= 0x8000; return a; }                                                         \
    NV TYPE operator+(TYPE a) { return a; }                                                                           \
    NV TYPE &operator+=(TYPE &a, TYPE b) { return a = a + b; }                                                        \
    NV TYPE &operator-=(TYPE &a, TYPE b) { return a = a - b; }                                                        \
    NV TYPE &operator*=(TYPE &a, TYPE b) { return a = a * b; }                                                        \
    NV TYPE &operator/=(TYPE &a, TYPE b) { return a = a / b; }                                                        \
    NV bool operator<(TYPE a, TYPE b) { return (float)a < (float)b; }                                                 \
    NV bool operator>(TYPE a, TYPE b) { return (float)a > (float)b; }                                                 \
    NV bool operator<=(TYPE a, TYPE b) { return (float)a <= (float)b; }                                               \
    NV bool operator>=(TYPE a, TYPE b) { return (float)a >= (float)b; }                                               \
    NV bool operator==(TYPE a, TYPE b) { return (float)a == (float)b; }                                               \
    NV bool operator!=(TYPE a, TYPE b) { return (float)a != (float)b; }
EMU_NUMBER(half, emu_to_half, emu_from_half)
EMU_NUMBER(nv_bfloat16, emu_to_bfloat, emu_from_bfloat)
typedef half __half;
typedef nv_bfloat16 __nv_bfloat16;

/* -- vectors ------------------------------------------------------------------------------------------------------- */

/* Copied by functions of their own: the compiler checks the alignment of what these are called for, not of a copy. */
#define EMU_VECTOR2(NAME, T, ALIGN)                                                                                   \
    struct alignas(ALIGN) NAME {                                                                                      \
        T x, y;                                                                                                       \
        NAME() = default;                                                                                             \
        NAME(const NAME &v) : x(v.x), y(v.y) {}                                                                       \
        NAME(T x, T y) : x(x), y(y) {}                                                                                \
        NAME &operator=(const NAME &v) { x = v.x, y = v.y; return *this; }                                            \
    };                                                                                                                \
    NV NAME make_##NAME(T x, T y) { return NAME(x, y); }
#define EMU_VECTOR3(NAME, T, ALIGN)                                                                                   \
    struct alignas(ALIGN) NAME { T x, y, z; };                                                                        \
    NV NAME make_##NAME(T x, T y, T z) { NAME v; v.x = x, v.y = y, v.z = z; return v; }
#define EMU_VECTOR4(NAME, T, ALIGN)                                                                                   \
    struct alignas(ALIGN) NAME {                                                                                      \
        T x, y, z, w;                                                                                                 \
        NAME() = default;                                                                                             \
        NAME(const NAME &v) : x(v.x), y(v.y), z(v.z), w(v.w) {}                                                       \
        NAME(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                                          \
        NAME &operator=(const NAME &v) { x = v.x, y = v.y, z = v.z, w = v.w; return *this; }                          \
    };                                                                                                                \
    NV NAME make_##NAME(T x, T y, T z, T w) { return NAME(x, y, z, w); }
#define EMU_VECTORS(NAME, T, SIZE)                                                                                    \
    struct alignas(SIZE) NAME##1 { T x; };                                                                            \
    NV NAME##1 make_##NAME##1(T x) { NAME##1 v; v.x = x; return v; }                                                  \
    EMU_VECTOR2(NAME##2, T, 2 * SIZE)                                                                                 \
    EMU_VECTOR3(NAME##3, T, SIZE)                                                                                     \
    EMU_VECTOR4(NAME##4, T, 4 * SIZE > 16 ? 16 : 4 * SIZE)
EMU_VECTORS(char, signed char, 1)
EMU_VECTORS(uchar, unsigned char, 1)
EMU_VECTORS(short, short, 2)
EMU_VECTORS(ushort, unsigned short, 2)
EMU_VECTORS(int, int, 4)
EMU_VECTORS(uint, unsigned, 4)
EMU_VECTORS(longlong, long long, 8)
EMU_VECTORS(ulonglong, unsigned long long, 8)
EMU_VECTORS(float, float, 4)
EMU_VECTORS(double, double, 8)
EMU_VECTOR2(half2, half, 4)
EMU_VECTOR4(half4, half, 8)
EMU_VECTOR2(nv_bfloat162, nv_bfloat16, 4)
EMU_VECTOR4(nv_bfloat164, nv_bfloat16, 8)
typedef half2 __half2;
typedef nv_bfloat162 __nv_bfloat162;

NV unsigned __pack_half2(half x, half y) { return (unsigned)y.bits << 16 | x.bits; }
NV unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return (unsigned)y.bits << 16 | x.bits; }

/* -- functions of CUDA C++ ----------------------------------------------------------------------------------------- */

#define EMU_MATH1(NAME) extern "C" float NAME##f(float); extern "C" double NAME(double);
#define EMU_MATH2(NAME) extern "C" float NAME##f(float, float); extern "C" double NAME(double, double);
EMU_MATH1(acos) EMU_MATH1(acosh) EMU_MATH1(asin) EMU_MATH1(asinh) EMU_MATH1(atan) EMU_MATH1(atanh) EMU_MATH1(cbrt)
EMU_MATH1(ceil) EMU_MATH1(cos) EMU_MATH1(cosh) EMU_MATH1(erf) EMU_MATH1(erfc) EMU_MATH1(exp) EMU_MATH1(exp2)
EMU_MATH1(expm1) EMU_MATH1(fabs) EMU_MATH1(floor) EMU_MATH1(lgamma) EMU_MATH1(log) EMU_MATH1(log10) EMU_MATH1(log1p)
EMU_MATH1(log2) EMU_MATH1(nearbyint) EMU_MATH1(rint) EMU_MATH1(round) EMU_MATH1(sin) EMU_MATH1(sinh) EMU_MATH1(sqrt)
EMU_MATH1(tan) EMU_MATH1(tanh) EMU_MATH1(tgamma) EMU_MATH1(trunc)
EMU_MATH2(atan2) EMU_MATH2(copysign) EMU_MATH2(fdim) EMU_MATH2(fmax) EMU_MATH2(fmin) EMU_MATH2(fmod) EMU_MATH2(hypot)
EMU_MATH2(nextafter) EMU_MATH2(pow) EMU_MATH2(remainder)
extern "C" float fmaf(float, float, float), ldexpf(float, int), frexpf(float, int *), modff(float, float *);
extern "C" double fma(double, double, double), ldexp(double, int);
extern "C" int abs(int);
NV long long llabs(long long v) { return v < 0 ? -v : v; }
NV float exp10f(float v) { return powf(10.0f, v); }
NV float rsqrtf(float v) { return 1.0f / sqrtf(v); }
NV double rsqrt(double v) { return 1.0 / sqrt(v); }
NV float log(float v) { return logf(v); }
NV float exp(float v) { return expf(v); }
NV float sqrt(float v) { return sqrtf(v); }
NV float fabs(float v) { return fabsf(v); }
NV float floor(float v) { return floorf(v); }
NV float ceil(float v) { return ceilf(v); }
NV float erf(float v) { return erff(v); }
NV float tanh(float v) { return tanhf(v); }
NV float pow(float v, float e) { return powf(v, e); }
NV float fma(float a, float b, float c) { return fmaf(a, b, c); }
template <class T> NV bool isnan(T v) { return v != v; }
template <class T> NV bool isinf(T v) { return v == v && v - v != v - v; }
template <class T> NV bool isfinite(T v) { return v - v == v - v; }
NV float __expf(float v) { return expf(v); }
NV float __exp10f(float v) { return exp10f(v); }
NV float __logf(float v) { return logf(v); }
NV float __log2f(float v) { return log2f(v); }
NV float __sinf(float v) { return sinf(v); }
NV float __cosf(float v) { return cosf(v); }
NV float __tanf(float v) { return tanf(v); }
NV float __powf(float v, float e) { return powf(v, e); }
NV float __fdividef(float a, float b) { return a / b; }
NV float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
NV float __fadd_rn(float a, float b) { return a + b; }
NV float __fsub_rn(float a, float b) { return a - b; }
NV float __fmul_rn(float a, float b) { return a * b; }
NV float __fdiv_rn(float a, float b) { return a / b; }
NV float __fsqrt_rn(float a) { return sqrtf(a); }
NV float __frcp_rn(float a) { return 1.0f / a; }
NV float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
NV float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
NV double __dmul_rn(double a, double b) { return a * b; }
NV double __dadd_rn(double a, double b) { return a + b; }

/* A GPU's conversions stop at the ends of the type, and NaN becomes 0. */
NV int __float2int_rz(float v) {
    return v != v ? 0 : v >= 2147483648.0f ? 2147483647 : v < -2147483648.0f ? (int)-2147483648LL : (int)v;
}
NV int __float2int_rn(float v) { return __float2int_rz(rintf(v)); }
NV int __float2int_rd(float v) { return __float2int_rz(floorf(v)); }
NV int __float2int_ru(float v) { return __float2int_rz(ceilf(v)); }
NV unsigned __float2uint_rz(float v) { return !(v > 0.0f) ? 0 : v >= 4294967296.0f ? 4294967295u : (unsigned)v; }
NV unsigned __float2uint_rn(float v) { return __float2uint_rz(rintf(v)); }
NV float __int2float_rn(int v) { return (float)v; }
NV float __uint2float_rn(unsigned v) { return (float)v; }
NV int __float_as_int(float v) { return emu_bits<int>(v); }
NV unsigned __float_as_uint(float v) { return emu_bits<unsigned>(v); }
NV float __int_as_float(int v) { return emu_bits<float>(v); }
NV float __uint_as_float(unsigned v) { return emu_bits<float>(v); }
NV double __longlong_as_double(long long v) { return emu_bits<double>(v); }
NV long long __double_as_longlong(double v) { return emu_bits<long long>(v); }

NV int __popc(unsigned v) { return __builtin_popcount(v); }
NV int __clz(int v) { return v == 0 ? 32 : __builtin_clz((unsigned)v); }
NV int __ffs(int v) { return __builtin_ffs(v); }
NV int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
NV unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
NV unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned found = 0;
    for (int i = 0; i < 4; i++) {
        unsigned chosen = s >> 4 * i & 15, byte = (unsigned)(both >> 8 * (chosen & 7)) & 255;
        found |= (chosen & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return found;
}
NV int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(signed char)(a >> 8 * i) * (int)(signed char)(b >> 8 * i);
    return c;
}
NV unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return c;
}
template <class T> NV T __ldg(const T *at) { return *at; }
template <class T> NV T atomicAdd(T *at, T v) { T old = *at; *at = old + v; return old; }
template <class T> NV T atomicMax(T *at, T v) { T old = *at; if (v > old) *at = v; return old; }
template <class T> NV T atomicMin(T *at, T v) { T old = *at; if (v < old) *at = v; return old; }

template <class A, class B> struct emu_wider { typedef decltype(true ? A() : B()) type; };
template <class A, class B> NV typename emu_wider<A, B>::type max(A a, B b) {
    typedef typename emu_wider<A, B>::type T;
    return (T)a > (T)b ? (T)a : (T)b;
}
template <class A, class B> NV typename emu_wider<A, B>::type min(A a, B b) {
    typedef typename emu_wider<A, B>::type T;
    return (T)a < (T)b ? (T)a : (T)b;
}
NV float max(float a, float b) { return fmaxf(a, b); }
NV float min(float a, float b) { return fminf(a, b); }
NV double max(double a, double b) { return fmax(a, b); }
NV double min(double a, double b) { return fmin(a, b); }
NV half max(half a, half b) { return half(fmaxf(a, b)); }
NV half min(half a, half b) { return half(fminf(a, b)); }
NV nv_bfloat16 max(nv_bfloat16 a, nv_bfloat16 b) { return nv_bfloat16(fmaxf(a, b)); }
NV nv_bfloat16 min(nv_bfloat16 a, nv_bfloat16 b) { return nv_bfloat16(fminf(a, b)); }

NV float __half2float(half v) { return v; }
NV half __float2half(float v) { return half(v); }
NV half __float2half_rn(float v) { return half(v); }
NV float __bfloat162float(nv_bfloat16 v) { return v; }
NV nv_bfloat16 __float2bfloat16(float v) { return nv_bfloat16(v); }
NV nv_bfloat16 __float2bfloat16_rn(float v) { return nv_bfloat16(v); }
NV unsigned short __half_as_ushort(half v) { return v.bits; }
NV half __ushort_as_half(unsigned short bits) { half v; v.bits = bits; return v; }
NV unsigned short __bfloat16_as_ushort(nv_bfloat16 v) { return v.bits; }
NV nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { nv_bfloat16 v; v.bits = bits; return v; }
NV half2 __floats2half2_rn(float x, float y) { return make_half2(half(x), half(y)); }
NV half2 __float22half2_rn(float2 v) { return make_half2(half(v.x), half(v.y)); }
NV float2 __half22float2(half2 v) { return make_float2(v.x, v.y); }
NV nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return make_nv_bfloat162(nv_bfloat16(x), nv_bfloat16(y)); }
NV float2 __bfloat1622float2(nv_bfloat162 v) { return make_float2(v.x, v.y); }

#define EMU_SIXTEEN1(NAME, OF)                                                                                        \
    NV half NAME(half v) { return half(OF((float)v)); }                                                               \
    NV nv_bfloat16 NAME(nv_bfloat16 v) { return nv_bfloat16(OF((float)v)); }
#define EMU_SIXTEEN2(NAME, OF)                                                                                        \
    NV half NAME(half a, half b) { return half(OF((float)a, (float)b)); }                                             \
    NV nv_bfloat16 NAME(nv_bfloat16 a, nv_bfloat16 b) { return nv_bfloat16(OF((float)a, (float)b)); }
EMU_SIXTEEN1(hexp, expf) EMU_SIXTEEN1(hexp2, exp2f) EMU_SIXTEEN1(hexp10, exp10f) EMU_SIXTEEN1(hlog, logf)
EMU_SIXTEEN1(hlog2, log2f) EMU_SIXTEEN1(hlog10, log10f) EMU_SIXTEEN1(hsqrt, sqrtf) EMU_SIXTEEN1(hrsqrt, rsqrtf)
EMU_SIXTEEN1(hrcp, __frcp_rn) EMU_SIXTEEN1(hsin, sinf) EMU_SIXTEEN1(hcos, cosf) EMU_SIXTEEN1(hfloor, floorf)
EMU_SIXTEEN1(hceil, ceilf) EMU_SIXTEEN1(htrunc, truncf) EMU_SIXTEEN1(hrint, rintf) EMU_SIXTEEN1(htanh, tanhf)
EMU_SIXTEEN1(htan, tanf) EMU_SIXTEEN1(hatan, atanf) EMU_SIXTEEN1(herf, erff) EMU_SIXTEEN1(__habs, fabsf)
EMU_SIXTEEN2(hpow, powf) EMU_SIXTEEN2(__hmax, fmaxf) EMU_SIXTEEN2(__hmin, fminf)
NV half __hadd(half a, half b) { return a + b; }
NV half __hsub(half a, half b) { return a - b; }
NV half __hmul(half a, half b) { return a * b; }
NV half __hfma(half a, half b, half c) { return half(emu_towards_odd((double)(float)a * (double)(float)b + (double)(float)c)); }
NV bool __hgt(half a, half b) { return a > b; }
NV bool __hlt(half a, half b) { return a < b; }
