// Another device that takes layers beside Shoal. ggml never forgets a device: those of a case are
// registered in a process of its own.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "ggml-backend-impl.h"
#include "llama_support.hpp"

namespace shoal::testing {

namespace {

ggml_backend_buffer_type_t other_buffer_type() {
    static ggml_backend_buffer_type type = {
        {.get_name = [](ggml_backend_buffer_type_t) { return "OTHER"; },
         .alloc_buffer = [](ggml_backend_buffer_type_t, size_t) -> ggml_backend_buffer_t {
             return nullptr;
         },
         .get_alignment = [](ggml_backend_buffer_type_t) { return size_t{64}; },
         .get_max_size = nullptr,
         .get_alloc_size = nullptr,
         .is_host = nullptr},
        nullptr,
        nullptr};
    return &type;
}

// A device that exists and does nothing. `context`: its name.
template <enum ggml_backend_dev_type Type>
void register_device(const char* name) {
    auto* device = new ggml_backend_device{};
    device->context = const_cast<char*>(name);
    device->reg = plugin().registry;
    device->iface.get_name = [](ggml_backend_dev_t d) {
        return static_cast<const char*>(d->context);
    };
    device->iface.get_description = device->iface.get_name;
    device->iface.get_memory = [](ggml_backend_dev_t, size_t* free, size_t* total) {
        *free = *total = size_t{1} << 30;
    };
    device->iface.get_type = [](ggml_backend_dev_t) { return Type; };
    device->iface.get_props = [](ggml_backend_dev_t d, ggml_backend_dev_props* props) {
        *props = {};
        props->name = props->description = static_cast<const char*>(d->context);
        props->type = Type;
    };
    device->iface.init_backend = [](ggml_backend_dev_t, const char*) -> ggml_backend_t {
        return nullptr;
    };
    device->iface.get_buffer_type = [](ggml_backend_dev_t) { return other_buffer_type(); };
    device->iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor*) { return false; };
    device->iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t) {
        return false;
    };
    ggml_backend_device_register(device);
}

// Makes a context, writes what was logged to stderr, and ends the process: 0 when it was made.
[[noreturn]] void make_context_and_exit() {
    take_log();
    const bool made = make_context(Engine::shoal, {}) != nullptr;
    std::fputs(take_log().c_str(), stderr);
    std::fflush(stderr);
    std::_Exit(made ? 0 : 1);
}

class OtherDevicesDeathTest : public ::testing::Test {
protected:
    // The child starts anew: threads of OpenMP and a loaded plugin do not survive a fork.
    OtherDevicesDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

}  // namespace

TEST_F(OtherDevicesDeathTest, AreNamedWithWhatToSet) {
    EXPECT_EXIT(
        {
            model(Engine::shoal);
            register_device<GGML_BACKEND_DEVICE_TYPE_GPU>("Fake0");
            register_device<GGML_BACKEND_DEVICE_TYPE_IGPU>("Fake1");
            make_context_and_exit();
        },
        ::testing::ExitedWithCode(0),
        "shoal: Fake0, Fake1 can take layers too, and Shoal does not hold the cache of those: "
        "choose one device .-dev SHOAL0.");
}

TEST_F(OtherDevicesDeathTest, NothingIsSaidWithoutThem) {
    model(Engine::shoal);
    take_log();
    ASSERT_NE(make_context(Engine::shoal, {}), nullptr);
    const std::string log = take_log();
    EXPECT_NE(log.find("shoal: holding the KV cache"), std::string::npos) << log;
    EXPECT_EQ(log.find("can take layers"), std::string::npos) << log;
}

}  // namespace shoal::testing
