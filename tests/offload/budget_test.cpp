#include "offload/budget.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace shoal::offload {
namespace {

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST(Budget, ReservationsGiveBack) {
    Budget budget("host.kv_bytes", 1000);
    {
        const Result<Reservation> rows = budget.reserve(MemoryTag::kv, 600);
        const Result<Reservation> labels = budget.reserve(MemoryTag::labels, 400);
        ASSERT_TRUE(rows && labels);
        EXPECT_EQ(budget.left_bytes(), 0U);
        EXPECT_EQ(budget.used_bytes(MemoryTag::kv), 600U);
        EXPECT_EQ(budget.used_bytes(MemoryTag::labels), 400U);
        EXPECT_EQ(budget.used_bytes(MemoryTag::index), 0U);
        EXPECT_TRUE(budget.reserve(MemoryTag::index, 0));
    }
    EXPECT_EQ(budget.used_bytes(), 0U);
    EXPECT_EQ(budget.used_bytes(MemoryTag::kv), 0U);
}

TEST(Budget, OneByteTooManyIsRefusedWithFieldWantedAndLeft) {
    Budget budget("host.kv_bytes", 4096);
    const Result<Reservation> rows = budget.reserve(MemoryTag::kv, 3000);
    ASSERT_TRUE(rows);
    EXPECT_TRUE(budget.reserve(MemoryTag::labels, 1096));
    const Result<Reservation> refused = budget.reserve(MemoryTag::labels, 1097);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::out_of_memory);
    const std::string message = refused.status().message();
    for (const char* part : {"host.kv_bytes", "4.0 KiB", "labels", "1097 B", "1096 B"}) {
        EXPECT_TRUE(contains(message, part)) << message << " lacks " << part;
    }
    EXPECT_EQ(budget.used_bytes(), 3000U);
}

TEST(Budget, HugeRequestDoesNotWrapAround) {
    Budget budget("host.kv_bytes", 4096);
    const Result<Reservation> rows = budget.reserve(MemoryTag::kv, 1);
    ASSERT_TRUE(rows);
    EXPECT_FALSE(budget.reserve(MemoryTag::kv, UINT64_MAX));
    EXPECT_EQ(budget.used_bytes(), 1U);
}

TEST(Reservation, GrowsAndShrinks) {
    Budget budget("host.kv_bytes", 100);
    Result<Reservation> made = budget.reserve(MemoryTag::workspace, 10);
    ASSERT_TRUE(made);
    Reservation& reservation = *made;
    EXPECT_TRUE(reservation.grow(90));
    EXPECT_EQ(reservation.bytes(), 100U);
    EXPECT_FALSE(reservation.grow(1));
    EXPECT_EQ(reservation.bytes(), 100U);
    reservation.shrink(0);
    reservation.shrink(60);
    EXPECT_EQ(reservation.bytes(), 40U);
    EXPECT_EQ(budget.used_bytes(MemoryTag::workspace), 40U);
}

TEST(Reservation, MovesAndNeverCopies) {
    static_assert(!std::is_copy_constructible_v<Reservation>);
    static_assert(!std::is_copy_assignable_v<Reservation>);
    static_assert(std::is_nothrow_move_constructible_v<Reservation>);

    Budget budget("host.kv_bytes", 100);
    Reservation a = std::move(*budget.reserve(MemoryTag::kv, 30));
    Reservation b = std::move(*budget.reserve(MemoryTag::index, 50));
    Reservation moved(std::move(a));
    EXPECT_EQ(a.bytes(), 0U);  // NOLINT: a moved-from reservation holds nothing
    EXPECT_EQ(moved.bytes(), 30U);
    EXPECT_EQ(budget.used_bytes(), 80U);
    moved = std::move(b);  // gives the 30 back, takes the 50 over
    EXPECT_EQ(moved.tag(), MemoryTag::index);
    EXPECT_EQ(budget.used_bytes(), 50U);
    Reservation& same = moved;
    moved = std::move(same);
    EXPECT_EQ(moved.bytes(), 50U);
    moved = Reservation();
    EXPECT_EQ(budget.used_bytes(), 0U);
}

TEST(Budget, ManyThreadsNeverExceedTheTotal) {
    constexpr uint64_t kTotal = 64;
    Budget budget("host.kv_bytes", kTotal);
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
        threads.emplace_back([&budget, t, total = kTotal] {
            for (uint64_t i = 0; i < 2000; ++i) {
                Result<Reservation> one = budget.reserve(MemoryTag::kv, 1 + (i * 7 + t) % 40);
                if (one && one->grow(3)) one->shrink(2);
                EXPECT_LE(budget.used_bytes(), total);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(budget.used_bytes(), 0U);
}

TEST(BudgetDeathTest, ReservationMustNotOutliveItsBudget) {
    EXPECT_DEATH(
        {
            auto budget = std::make_unique<Budget>("host.kv_bytes", 10);
            const Result<Reservation> kept = budget->reserve(MemoryTag::kv, 1);
            budget.reset();
        },
        "used_bytes_ == 0");
}

}  // namespace
}  // namespace shoal::offload
