// How Shoal says that something failed.
//
// Three kinds of error, three forms:
//   wrong use by Shoal itself      SHOAL_ASSERT, on in every build: prints and aborts
//   the world failed               Status, whose code tells the caller what to do
//   a bad configuration or input   Status with `invalid_argument`, before anything is allocated,
//                                  naming the field, its value and what is allowed
// No exception crosses the public interface.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace shoal {

// What the caller should do, not what went wrong inside.
enum class StatusCode {
    ok,
    invalid_argument,  // fix the call or the configuration: the message names the field
    out_of_memory,     // ask for less: the message says how much would fit
    not_found,         // the store, file or profile named does not exist
    unsupported,       // this model, dtype or operation cannot be served; the message says why
    corrupt,           // a file or block failed its check; nothing of it was used
    unavailable,       // try again later (a deadline passed)
    internal,          // a defect of Shoal: please report
};

// Name of a code as it appears in messages, e.g. "invalid_argument".
const char* status_code_name(StatusCode code);

// The outcome of a call that returns nothing. Cheap when ok: no allocation.
class [[nodiscard]] Status {
public:
    static Status ok() { return Status(); }
    static Status error(StatusCode code, std::string message) {
        return Status(code, std::move(message));
    }
    bool is_ok() const { return code_ == StatusCode::ok; }
    explicit operator bool() const { return is_ok(); }
    StatusCode code() const { return code_; }
    // One sentence for a person: field, value, what is allowed. Empty when ok.
    const std::string& message() const { return message_; }

private:
    Status() = default;
    Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}
    StatusCode code_ = StatusCode::ok;
    std::string message_;
};

// A value, or the Status that says why there is none. `value()` of an error is a mistake
// of the caller: it throws std::bad_variant_access.
template <typename T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::move(value)) {}                  // NOLINT: implicit by design
    Result(Status status) : state_(std::move(status)) {}           // NOLINT: implicit by design
    bool is_ok() const { return std::holds_alternative<T>(state_); }
    explicit operator bool() const { return is_ok(); }
    Status status() const { return is_ok() ? Status::ok() : std::get<Status>(state_); }
    T& value() { return std::get<T>(state_); }
    const T& value() const { return std::get<T>(state_); }
    T& operator*() { return value(); }
    const T& operator*() const { return value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

private:
    std::variant<T, Status> state_;
};

namespace detail {
[[noreturn]] void assert_failed(const char* condition, const char* file, int line);
}

}  // namespace shoal

// An invariant of Shoal's own code. Stays on in release builds. Never used to check input.
#define SHOAL_ASSERT(condition) \
    ((condition) ? (void)0 : ::shoal::detail::assert_failed(#condition, __FILE__, __LINE__))

// Returns the Status of `expression` from the enclosing function when it is not ok.
#define SHOAL_TRY(expression)                                   \
    do {                                                        \
        ::shoal::Status shoal_try_status = (expression);        \
        if (!shoal_try_status.is_ok()) return shoal_try_status; \
    } while (0)
