// Which instruction sets this suite covers: all that the processor has, and each op on all of them.
#include <set>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {
namespace {

// By the compiler's own look at the processor, not by Highway's.
std::set<std::string> expected_targets() {
    std::set<std::string> names;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.insert("AVX2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifndef SHOAL_SANITIZED  // left out there (kernels/cpu/targets.hpp)
    if (avx512) names.insert("AVX3");
#endif
    if (avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("gfni") &&
        __builtin_cpu_supports("vpclmulqdq")) {
        names.insert("AVX3_DL");
    }
#elif defined(__aarch64__)
    names.insert("NEON");
#endif
    return names;
}

// "MatchesRef/AVX3_12" -> "AVX3".
std::string backend_of_test(std::string name) {
    const size_t slash = name.rfind('/');
    if (slash == std::string::npos) return "";
    name.erase(0, slash + 1);
    const size_t number = name.rfind('_');
    if (number == std::string::npos) return name;
    const bool is_numbered = name.find_first_not_of("0123456789", number + 1) == std::string::npos;
    return is_numbered ? name.substr(0, number) : name;
}

TEST(DispatchTest, EveryInstructionSetOfThisProcessorIsCovered) {
    std::set<std::string> covered;
    for (const BackendCase& backend : all_backends()) covered.insert(backend.name);
    EXPECT_TRUE(covered.contains("ref"));
    for (const std::string& name : expected_targets()) EXPECT_TRUE(covered.contains(name)) << name;
}

// A target that is held is the target that runs, and letting go restores the best one.
TEST(DispatchTest, ScopesHoldTheirTarget) {
    const std::string best = cpu_target_name();
    for (const BackendCase& backend : all_backends()) {
        const TargetScope scope(backend);
        EXPECT_EQ(cpu_target_name(), backend.target == 0 ? best : backend.name);
    }
    EXPECT_EQ(cpu_target_name(), best);
}

TEST(DispatchTest, EveryOpIsTestedOnEveryBackend) {
    std::set<std::pair<std::string, std::string>> tested;
    const ::testing::UnitTest& all = *::testing::UnitTest::GetInstance();
    for (int s = 0; s < all.total_test_suite_count(); ++s) {
        const ::testing::TestSuite& suite = *all.GetTestSuite(s);
        const std::string suite_name = suite.name();
        for (int t = 0; t < suite.total_test_count(); ++t) {
            tested.emplace(suite_name.substr(suite_name.find('/') + 1),
                           backend_of_test(suite.GetTestInfo(t)->name()));
        }
    }
    for (const BackendCase& backend : all_backends()) {
        for (const char* suite : {"AppendTest", "LabelTest", "PageBoundsTest", "TopkTest",
                                  "AttendTest", "MergeTest", "PrefillTest"}) {
            EXPECT_TRUE(tested.contains({suite, backend.name})) << suite << " on " << backend.name;
        }
    }
}

}  // namespace
}  // namespace shoal::kernels::test
