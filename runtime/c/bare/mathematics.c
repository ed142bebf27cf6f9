/* Functions of <math.h> on doubles for programs that are linked without a C library: those that clang's compiler-rt does
 * not bring (it has exp, log, sin, cos, tan, sqrt). A C library's are taken where there is one: these are weak.
 *
 * Errors stay below 1e-14 of the result (pow: 1e-12, where the power is near overflow). Identities after Kahan, "Branch
 * cuts for complex elementary functions" (1987); erf by the series of Abramowitz and Stegun, 7.1.6. */
double exp(double), log(double);

#define WEAK __attribute__((weak))
#define INFINITE __builtin_inf()

WEAK double nearbyint(double x) {
    double large = __builtin_copysign(4503599627370496.0, x); /* 2^52: to it only whole numbers can be added */
    return __builtin_fabs(x) < 4503599627370496.0 ? __builtin_copysign((x + large) - large, x) : x;
}

WEAK double expm1(double x) {
    double e = exp(x);
    if (e == 1) return x;
    if (x < -40 || x > 40 || x != x) return e - 1;
    return (e - 1) * x / log(e);
}

WEAK double log1p(double x) {
    double y = 1 + x;
    return y == 1 || x == INFINITE ? x : log(y) * x / (y - 1);
}

WEAK double sinh(double x) {
    double a = __builtin_fabs(x), half = exp(a / 2), e = expm1(a);
    return __builtin_copysign(a > 700 ? half / 2 * half : (e + e / (e + 1)) / 2, x);
}

WEAK double cosh(double x) {
    double half = exp(__builtin_fabs(x) / 2), e = half * half;
    return half / 2 * half + 0.5 / e;
}

WEAK double tanh(double x) {
    double a = __builtin_fabs(x), e = expm1(2 * a);
    return __builtin_copysign(a > 22 ? 1 : e / (e + 2), x);
}

WEAK double asinh(double x) {
    double a = __builtin_fabs(x);
    double y = a > 1e9 ? log(a) + 0.69314718055994531 : log1p(a + a * a / (1 + __builtin_sqrt(a * a + 1)));
    return __builtin_copysign(y, x);
}

WEAK double acosh(double x) {
    double t = x - 1;
    if (x < 1) return __builtin_nan("");
    return x > 1e9 ? log(x) + 0.69314718055994531 : log1p(t + __builtin_sqrt(2 * t + t * t));
}

WEAK double atanh(double x) {
    double a = __builtin_fabs(x);
    return __builtin_copysign(0.5 * log1p(2 * a / (1 - a)), x);
}

WEAK double atan(double x) {
    double a = __builtin_fabs(x), t = a > 1 ? 1 / a : a, sum = 0;
    for (int i = 0; i < 2; i++) t /= 1 + __builtin_sqrt(1 + t * t); /* the angle halved, to below 0.2 */
    for (int n = 27; n > 0; n -= 2) sum = 1.0 / n - t * t * sum;
    sum *= 4 * t;
    return __builtin_copysign(a > 1 ? 1.57079632679489662 - sum : sum, x);
}

WEAK double asin(double x) {
    return __builtin_fabs(x) <= 1 ? atan(x / __builtin_sqrt((1 - x) * (1 + x))) : __builtin_nan("");
}

WEAK double acos(double x) {
    return __builtin_fabs(x) <= 1 ? 2 * atan(__builtin_sqrt((1 - x) / (1 + x))) : __builtin_nan("");
}

WEAK double erf(double x) {
    double a = __builtin_fabs(x), term = a, sum = a;
    if (x != x) return x;
    if (a >= 6) return __builtin_copysign(1, x);
    for (int n = 1; term > 1e-17 * sum; n++) sum += term *= 2 * a * a / (2 * n + 1);
    return __builtin_copysign(1.12837916709551257 * exp(-a * a) * sum, x);
}

/* 0: y is no whole number, 1: an odd one, 2: an even one */
static int whole(double y) {
    double a = __builtin_fabs(y);
    if (a >= 9007199254740992.0) return 2;
    if (nearbyint(y) != y) return 0;
    return nearbyint(a / 2) * 2 == a ? 2 : 1;
}

WEAK double pow(double x, double y) {
    double a = __builtin_fabs(x);
    int kind = whole(y);
    if (y == 0 || x == 1) return 1;
    if (x != x || y != y) return x + y;
    if (a == 1 && __builtin_fabs(y) == INFINITE) return 1;
    if (x < 0 && x != -INFINITE && kind == 0) return __builtin_nan("");
    double size = a == 0 || a == INFINITE ? ((a == 0) == (y > 0) ? 0.0 : INFINITE) : a == 1 ? 1 : exp(y * log(a));
    return __builtin_signbit(x) && kind == 1 ? -size : size;
}
